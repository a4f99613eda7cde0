"""What a training leaves: a line of JSON in a file that all trainings share."""

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

DIGITS = 5  # of what is written
MARKS = 12  # times that a training is measured, if its loss stays finite


class Record(NamedTuple):
    """A training.

    Attributes:
      problem: what was learned.
      optimizer: by whom.
      steps: of the training.
      rate: the highest learning rate.
      seed: of the start, the order of the data and, of clicks, the world.
      validation: loss at equally many steps each; it ends where it is not finite.
      test: what is measured at the end, by name.
      state_bytes: of the optimizer.
      milliseconds: of a step, in the fastest part of the training.
      rates: quantiles of the rates of the neurons at the end, by leaf.
    """

    problem: str
    optimizer: str
    steps: int
    rate: float
    seed: int
    validation: list[float]
    test: Mapping[str, float]
    state_bytes: int
    milliseconds: float
    rates: Mapping[str, list[float]]

    @property
    def run(self) -> tuple[float, int]:
        """Which of the trainings of an optimizer on a problem it is."""
        return self.rate, self.seed

    @property
    def score(self) -> float:
        """The last loss of the validation; infinite if it is not finite."""
        return self.validation[-1] if math.isfinite(self.validation[-1]) else math.inf


def best(records: Iterable[Record]) -> float:
    """Return the learning rate of the least validation loss, of equals the lowest."""
    return min(records, key=lambda record: (record.score, record.rate)).rate


def missing(done: Iterable[Record], rates: Sequence[float], seeds: int) -> int:
    """Return how many of an optimizer's trainings on a problem are still to be done."""
    known = {record.run: record for record in done}
    tried = [known[rate, 0] for rate in rates if (rate, 0) in known]
    left = len(rates) - len(tried)
    if left:
        return left + seeds - 1
    chosen = best(tried)
    return sum((chosen, seed) not in known for seed in range(1, seeds))


def read(path: Path) -> list[Record]:
    """Read all records; a line that a killed study left unfinished is no record."""
    if not path.exists():
        return []
    lines = path.read_text().split("\n")[:-1]
    return [Record(**json.loads(line)) for line in lines]


def append(path: Path, record: Record) -> None:
    """Write a line, after what a killed study left of one is taken away."""
    text = path.read_text() if path.exists() else ""
    if text and not text.endswith("\n"):
        path.write_text(text[: text.rfind("\n") + 1])
    with path.open("a") as file:
        file.write(line(record) + "\n")


def line(record: Record) -> str:
    """Return a record as JSON, its numbers of five digits; NaN stands for no number."""
    return json.dumps(_rounded(record._asdict()), separators=(",", ":"))


def _rounded(value: Any) -> Any:
    if isinstance(value, float):
        return float(f"{value:.{DIGITS}g}")
    if isinstance(value, Mapping):
        return {name: _rounded(of) for name, of in value.items()}
    return [_rounded(of) for of in value] if isinstance(value, list) else value
