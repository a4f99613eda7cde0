"""Where contenders stand on a problem: what their records say, and beside Adam's."""

import math
import statistics
from collections.abc import Iterable, Mapping
from typing import NamedTuple

import numpy as np

from benchmarks.study.plan import Part
from benchmarks.study.records import MARKS, Record, best

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
            name: standing(grouped.get((problem, name), []), contender.rates)
            for name, contender in part.contenders.items()
        }
        found[problem] = {
            name: of
            for name, of in placed.items()
            if of and len(of.seeds) == part.seeds
        }
    return {problem: placed for problem, placed in found.items() if placed}


def standing(records: Iterable[Record], rates: Iterable[float]) -> Standing | None:
    """Return where a contender stands; ``None`` before all its rates are tried."""
    by_run = {record.run: record for record in records}
    tried = [by_run[rate, 0] for rate in sorted(rates) if (rate, 0) in by_run]
    if len(tried) < len(list(rates)):
        return None
    rate = best(tried)
    seeds = [by_run[run] for run in sorted(by_run) if run[0] == rate]
    edge = len(tried) > 1 and rate in (tried[0].rate, tried[-1].rate)
    return Standing(rate, edge, tried, seeds)


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


def median_steps_to(goal: float, of: Standing) -> float:
    """Return the median over seeds of `steps_to`."""
    return statistics.median(steps_to(goal, record) for record in of.seeds)


def adams_goal(placed: Standings) -> float:
    """Return the median over seeds of Adam's last validation loss."""
    return statistics.median(record.score for record in placed[ADAM].seeds)


class Beside(NamedTuple):
    """A contender beside another.

    Attributes:
      share: its median test loss over the other's, less 1.
      better: in how many seeds its test loss is less than the other's.
      seeds: how many there are.
    """

    share: float
    better: int
    seeds: int

    @property
    def verdict(self) -> str:
        """A word: better or worse in every seed, or neither."""
        return {0: "worse", self.seeds: "better"}.get(self.better, "undecided")


def beside(mine: Standing, other: Standing, name: str = "loss") -> Beside:
    """Compare two contenders, seed by seed: they start alike and see the same data."""
    pairs = list(zip(mine.test(name), other.test(name), strict=True))
    better = sum(its < others for its, others in pairs)
    return Beside(mine.median(name) / other.median(name) - 1, better, len(pairs))
