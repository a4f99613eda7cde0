"""How far two runs of an optimizer are apart, entry by entry and step by step."""

from collections.abc import Iterable, Mapping
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np

FEW = 6  # steps that are all shown
SHOWN = 10  # leaves of a step that are shown
Pairs = dict[str, tuple[np.ndarray, np.ndarray]]  # ours and theirs, in float64


class Difference(NamedTuple):
    """How far a leaf is from torch's after a step: the maxima over its entries.

    Attributes:
      step: the first is 1.
      path: of the leaf.
      absolute: difference, in units of the parameter.
      relative: difference over the larger magnitude of the two.
      ulp: difference in units in the last place, see `compare_with_torch`.

    Example:
      >>> Difference(1, "Dense_0/kernel", 0.5, 0.25, 2.0).ulp
      2.0
    """

    step: int
    path: str
    absolute: float
    relative: float
    ulp: float


class Parting(NamedTuple):
    """Where two optimizers part first: the entry that differs most in that step.

    Attributes:
      step: the first is 1.
      path: of the leaf.
      entry: index in the leaf, in the leaf's own axes.
      ours: the weight there, in the dtype of the leaf.
      theirs: torch's.
      ulp: their difference in units in the last place.

    Example:
      >>> print(Parting(3, "kernel", (1, 2), np.float32(0.5), np.float32(0.25), 4e6))
      step 3, kernel, entry (1, 2): ours 0.5, torch's 0.25, 4e+06 ulp
    """

    step: int
    path: str
    entry: tuple[int, ...]
    ours: np.generic
    theirs: np.generic
    ulp: float

    def __str__(self) -> str:
        where = f"step {self.step}, {self.path}, entry {self.entry}"
        both = f"ours {self.ours!s}, torch's {self.theirs!s}"  # shortest exact digits
        return f"{where}: {both}, {self.ulp:.3g} ulp"


class Unseen(NamedTuple):
    """Entries that cannot be told apart: they are finite on neither side.

    Attributes:
      entries: how many, in the step that has the most.
      of: as many entries there are in all leaves.
      step: in which there are some first; 0 is the start.

    Example:
      >>> print(Unseen(3, 20, 2))
      3 of 20 entries are finite on neither side, the first in step 2
    """

    entries: int
    of: int
    step: int

    def __str__(self) -> str:
        since = f"in step {self.step}" if self.step else "at the start"
        count = f"{self.entries} of {self.of} entries"
        return f"{count} are finite on neither side, the first {since}"


class Comparison(NamedTuple):
    """What `compare_with_torch` found; ``str`` of it is a table.

    Attributes:
      differences: of every leaf after every step, step by step.
      parting: where the two part first, ``None`` if they agree.
      dtypes: names of those in which they were compared.
      unseen: entries that are finite on neither side, ``None`` if there are none.

    Example:
      >>> print(Comparison((Difference(1, "w", 0.1, 0.1, 2.0),), None, ("float32",)))
      agree within 2 ulp in all 1 steps, in float32
      step  path  absolute  relative  ulp
      1     w     0.1       0.1       2
    """

    differences: tuple[Difference, ...]
    parting: Parting | None
    dtypes: tuple[str, ...]
    unseen: Unseen | None = None

    def __str__(self) -> str:
        last = self.differences[-1].step
        worst = max(self.differences, key=lambda row: row.ulp)
        head = f"agree within {worst.ulp:.3g} ulp in all {last} steps"
        head = f"part first at {self.parting}" if self.parting else head
        head = f"{head}, in {' and '.join(self.dtypes)}"
        head = f"{head}; {self.unseen}" if self.unseen else head
        steps = {1, worst.step, last}
        if self.parting:
            steps |= {self.parting.step - 1, self.parting.step} - {0}
        steps = range(1, last + 1) if last <= FEW else sorted(steps)
        lines = [["step", "path", "absolute", "relative", "ulp"]]
        for step in steps:
            rows = [row for row in self.differences if row.step == step]
            most = sorted(rows, key=lambda row: -row.ulp)[:SHOWN]
            for row in (row for row in rows if row in most):
                numbers = (f"{number:.3g}" for number in row[2:])
                lines.append([str(step), row.path, *numbers])
        widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
        table = ["  ".join(map(str.ljust, line, widths)).rstrip() for line in lines]
        return "\n".join([head, *table, *self._left_out(len(steps), last)])

    def _left_out(self, steps: int, last: int) -> list[str]:
        leaves = len(self.differences) // last
        said = []
        if steps < last:
            said.append(f"{steps} of {last} steps are shown")
        if leaves > SHOWN:
            said.append(f"of {leaves} leaves the {SHOWN} that differ most")
        return said


def compare_runs(
    runs: Iterable[Pairs], dtypes: Mapping[str, np.dtype], tolerance: float
) -> Comparison:
    """Compare the leaves of two runs before the first step and after every one.

    Args:
      runs: ours and theirs, by path; first the weights from which both start.
      dtypes: of the leaves, by path; they say what the last place is.
      tolerance: units in the last place beyond which the two part.

    Raises:
      ValueError: if after no step an entry is finite on either side.

    Example:
      >>> runs = [{"w": (np.zeros(2), np.zeros(2))}, {"w": (np.ones(2), np.ones(2))}]
      >>> compare_runs(runs, {"w": np.dtype("float32")}, 0.0).parting is None
      True
    """
    peaks, differences, parting = dict.fromkeys(dtypes, 0.0), [], None
    unseen = []
    for step, pairs in enumerate(runs):
        peaks = {path: _peak(peaks[path], *pair) for path, pair in pairs.items()}
        units = {path: _unit(peaks[path], dtypes[path]) for path in pairs}
        apart = {path: _apart(*pair, units[path]) for path, pair in pairs.items()}
        for path, of in apart.items():
            largest = (float(np.max(numbers, initial=0.0)) for numbers in of)
            differences.append(Difference(step, path, *largest))
        if parting is None:
            parting = _parting(step, pairs, apart, dtypes, tolerance)
        unseen.append(_unseen(step, pairs.values()))
    if all(of.entries == of.of for of in unseen[1:]):
        raise ValueError(
            f"no entry is finite on either side in any of {len(unseen) - 1} steps: "
            "nothing can be compared; are params and gradients finite?"
        )
    some = [of for of in unseen if of.entries]
    most = (
        max(some, key=lambda of: of.entries)._replace(step=some[0].step)
        if some
        else None
    )
    names = tuple(sorted({dtype.name for dtype in dtypes.values()}))
    after = tuple(row for row in differences if row.step)
    return Comparison(after, parting, names, most)


def _unseen(step: int, pairs: Iterable[tuple[np.ndarray, np.ndarray]]) -> Unseen:
    """Count the entries that are finite on neither side after a step."""
    neither = [~np.isfinite(ours) & ~np.isfinite(theirs) for ours, theirs in pairs]
    return Unseen(int(sum(map(np.sum, neither))), sum(map(np.size, neither)), step)


def _peak(peak, ours, theirs) -> np.ndarray:
    """Return the largest finite magnitude of each entry on either side so far."""
    sizes = np.abs([ours, theirs])
    return np.maximum(peak, np.where(np.isfinite(sizes), sizes, 0.0).max(axis=0))


def _unit(peak: np.ndarray, dtype: np.dtype) -> np.ndarray:
    """Return the unit in the last place of numbers of this size.

    Not less than float32's or float64's smallest normal number, below which XLA rounds
    to zero.
    """
    eps, tiny = float(jnp.finfo(dtype).eps), float(jnp.finfo(dtype).tiny)
    _, exponent = np.frexp(np.maximum(peak, tiny))  # of a fraction in [1/2, 1)
    flushed = min(tiny, float(jnp.finfo(jnp.float32).tiny))
    return np.maximum(np.ldexp(eps, exponent - 1), flushed)


def _apart(ours, theirs, unit) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the difference of each entry: absolute, relative and in units."""
    alike = (ours == theirs) | (np.isnan(ours) & np.isnan(theirs))
    finite = np.isfinite(ours) & np.isfinite(theirs)
    ours, theirs = (np.where(finite, side, 0.0) for side in (ours, theirs))
    gap = np.abs(ours - theirs)
    larger = np.maximum(np.abs(ours), np.abs(theirs))
    relative = gap / np.where(larger == 0, 1.0, larger)
    infinite = lambda of: np.where(alike, 0.0, np.where(finite, of, np.inf))
    return infinite(gap), infinite(relative), infinite(gap / unit)


def _parting(step, pairs, apart, dtypes, tolerance) -> Parting | None:
    """Return the entry that is furthest apart, if it is so by more than allowed."""
    largest = lambda path: np.max(apart[path][2], initial=0.0)
    path = max(apart, key=largest)
    if largest(path) <= tolerance:
        return None
    ulp = apart[path][2]
    entry = tuple(map(int, np.unravel_index(np.argmax(ulp), ulp.shape)))
    ours, theirs = (side[entry].astype(dtypes[path]) for side in pairs[path])
    return Parting(step, path, entry, ours, theirs, float(ulp[entry]))
