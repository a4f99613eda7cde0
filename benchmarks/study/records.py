"""What a training leaves: a line of JSON in a file that all trainings share."""

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

DIGITS = 5  # of what is written
BEYOND = 2  # rates at most that are tried beyond a grid
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


def next_run(
    done: Iterable[Record], rates: Sequence[float], seeds: int
) -> tuple[float, int] | None:
    """Return the rate and the seed that an optimizer trains with next, if any.

    First come the rates with seed 0. While the best is the lowest or the highest of
    them, another one follows beyond it, up to two; then the other seeds of the best.

    Args:
      done: its trainings on a problem so far.
      rates: that are tried, evenly apart; one rate stays alone.
      seeds: at the best rate.
    """
    known = {record.run: record for record in done}
    for rate in rates:
        if (rate, 0) not in known:
            return rate, 0
    tried = {rate: record for (rate, seed), record in known.items() if not seed}
    chosen = best(tried.values())
    if len(rates) > 1 and len(tried) < len(rates) + BEYOND:
        step = (max(rates) / min(rates)) ** (1 / (len(rates) - 1))
        if chosen == min(tried):
            return rounded(chosen / step), 0
        if chosen == max(tried):
            return rounded(chosen * step), 0
    for seed in range(1, seeds):
        if (chosen, seed) not in known:
            return chosen, seed
    return None


def rounded(rate: float) -> float:
    """Return a learning rate of three digits."""
    return float(f"{rate:.2e}")


def read(path: Path) -> list[Record]:
    """Read all records; a line that a killed study left unfinished is no record."""
    if not path.exists():
        return []
    lines = path.read_text().split("\n")[:-1]
    return [parse(line) for line in lines]


def append(path: Path, record: Record) -> None:
    """Write a line, after what a killed study left of one is taken away."""
    text = path.read_text() if path.exists() else ""
    if text and not text.endswith("\n"):
        path.write_text(text[: text.rfind("\n") + 1])
    with path.open("a") as file:
        file.write(line(record) + "\n")


def parse(line: str) -> Record:
    """Return the record of a line."""
    return Record(**json.loads(line))


def line(record: Record) -> str:
    """Return a record as JSON, its numbers of five digits; NaN stands for no number."""
    return json.dumps(_rounded(record._asdict()), separators=(",", ":"))


def _rounded(value: Any) -> Any:
    if isinstance(value, float):
        return float(f"{value:.{DIGITS}g}")
    if isinstance(value, Mapping):
        return {name: _rounded(of) for name, of in value.items()}
    return [_rounded(of) for of in value] if isinstance(value, list) else value
