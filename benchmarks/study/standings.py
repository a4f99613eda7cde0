"""Where contenders stand on a problem: what their records say, and beside Adam's."""

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from benchmarks.study.plan import Part
from benchmarks.study.records import MARKS, Record, best, next_run

ADAM = "adam"  # whom all are compared with


class Standing(NamedTuple):
    """A contender on a problem.

    Attributes:
      rate: the learning rate of the least validation loss.
      at_edge: whether no lower, or no higher, rate was tried.
      tried: records of the first seed, by rate.
      seeds: records at the best rate, by seed.
    """

    rate: float
    at_edge: bool
    tried: list[Record]
    seeds: list[Record]

    def test(self, name: str = "loss") -> list[float]:
        """Return what each seed measures on the test part; infinite if not finite."""
        found = [record.test[name] for record in self.seeds]
        return [value if math.isfinite(value) else math.inf for value in found]

    def median(self, name: str = "loss") -> float:
        """Return the median over seeds."""
        return statistics.median(self.test(name))

    @property
    def milliseconds(self) -> float:
        """The fastest part of any of its trainings, per step."""
        return min(record.milliseconds for record in [*self.tried, *self.seeds])

    @property
    def state_bytes(self) -> int:
        """Of the optimizer."""
        return self.seeds[0].state_bytes


Standings = Mapping[str, Standing]  # of one problem, by contender


def standings(
    records: Iterable[Record], plan: Mapping[str, Part]
) -> dict[str, Standings]:
    """Return by problem who stands where; who has not finished is left out."""
    grouped: dict[tuple[str, str], list[Record]] = {}
    for record in records:
        grouped.setdefault((record.problem, record.optimizer), []).append(record)
    found = {}
    for problem, part in plan.items():
        placed = {
            name: standing(
                grouped.get((problem, name), []), contender.rates, part.seeds
            )
            for name, contender in part.contenders.items()
        }
        found[problem] = {name: of for name, of in placed.items() if of}
    return {problem: placed for problem, placed in found.items() if placed}


def standing(
    records: list[Record], rates: Sequence[float], seeds: int
) -> Standing | None:
    """Return where a contender stands; ``None`` before all its trainings are done."""
    if next_run(records, rates, seeds):
        return None
    tried = sorted((of for of in records if not of.seed), key=lambda of: of.rate)
    rate = best(tried)
    at_best = sorted((of for of in records if of.rate == rate), key=lambda of: of.seed)
    edge = len(tried) > 1 and rate in (tried[0].rate, tried[-1].rate)
    return Standing(rate, edge, tried, at_best)


def marks(record: Record) -> np.ndarray:
    """Return the steps at which a training was measured."""
    return np.linspace(0, record.steps, MARKS + 1).astype(int)[1:]


def steps_to(goal: float, record: Record) -> float:
    """Return after how many steps the validation loss is as low as a goal.

    Between two measurements it is taken to change evenly; infinite if it never is.
    """
    at, losses = marks(record), record.validation
    for number, loss in enumerate(losses):
        if loss <= goal:
            if number == 0:
                return float(at[0])
            before = losses[number - 1]
            share = (before - goal) / (before - loss)
            return float(at[number - 1] + share * (at[number] - at[number - 1]))
    return math.inf


def steps_to_adams(of: Standing, adam: Standing) -> float:
    """Return the median over seeds of the steps to where Adam ended with that seed."""
    pairs = zip(of.seeds, adam.seeds, strict=True)
    return statistics.median(steps_to(its.score, mine) for mine, its in pairs)


class Beside(NamedTuple):
    """A contender beside another.

    Attributes:
      share: its median test loss over the other's, less 1; NaN if that is infinite.
      better: in how many seeds its test loss is less than the other's.
      seeds: how many there are.
    """

    share: float
    better: int
    seeds: int


def beside(mine: Standing, other: Standing, name: str = "loss") -> Beside:
    """Compare two contenders, seed by seed: they start alike and see the same data."""
    pairs = list(zip(mine.test(name), other.test(name), strict=True))
    better = sum(its < others for its, others in pairs)
    return Beside(mine.median(name) / other.median(name) - 1, better, len(pairs))
