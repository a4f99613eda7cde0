"""Which collectives does a compiled step make, and which would it not make without us?

They are read from the text of the HLO, in which one that is in flight for a while has a
start and a done, and one that was combined from several has a tuple for a result.
"""

import math
import re
from collections import Counter
from collections.abc import Iterable
from typing import NamedTuple

KINDS = (
    "all-gather",
    "all-reduce",
    "all-to-all",
    "collective-broadcast",
    "collective-permute",
    "ragged-all-to-all",
    "reduce-scatter",
)
# the result's type, "array" or "(array, array, ...)", then the name of the operation
INSTRUCTION = re.compile(rf"= (\(.*?\)|\S+) ({'|'.join(KINDS)})(?:-done)?\(")
CHANNEL = re.compile(r"\bchannel_id=(\d+)")
ARRAY = re.compile(r"\b([a-z]+\d+\w*|pred)\[([\d,]*)\]")


class Collective(NamedTuple):
    """One array that a collective returns on every device.

    Attributes:
      kind: one of `KINDS`.
      dtype: as HLO names it, ``f32`` for example.
      shape: on one device.
    """

    kind: str
    dtype: str
    shape: tuple[int, ...]

    @property
    def size(self) -> int:
        """How many numbers the array holds."""
        return math.prod(self.shape)

    def __str__(self) -> str:
        """Write it much as HLO does."""
        return f"{self.kind} {self.dtype}[{','.join(map(str, self.shape))}]"


def collectives(hlo: str) -> list[Collective]:
    """List the arrays that the collectives of a compiled HLO's text return.

    One in the body of a loop stands there once. Of a start and a done the done counts,
    whose type is the result's alone; of a channel that several fusions wait for, as on
    a TPU, the first.
    """
    found, seen = [], set()
    for number, line in enumerate(hlo.splitlines()):
        made, channel = INSTRUCTION.search(line), CHANNEL.search(line)
        once = channel[0] if channel else number
        if made and once not in seen:
            seen.add(once)
            found += [Collective(made[2], *array) for array in _arrays(made[1])]
    return found


def beyond(
    step: Iterable[Collective], baseline: Iterable[Collective]
) -> list[Collective]:
    """List those of a step that are not, as often, among those of the baseline.

    The largest come first. How they were combined, and in what order, does not count;
    nor do axes of length 1.
    """
    extra = Counter(map(_squeezed, step)) - Counter(map(_squeezed, baseline))
    return sorted(extra.elements(), key=lambda one: (-one.size, one))


def within_neurons(extra: Iterable[Collective], neurons: Iterable[int]) -> bool:
    """Return whether these reduce at most one float per neuron of the leaves.

    Each must be an all-reduce of its own leaf, no longer than that has neurons.

    Args:
      extra: what a step has beyond its baseline.
      neurons: how many there are in each leaf.
    """
    extra, limits = list(extra), sorted(neurons, reverse=True)
    sizes = sorted((one.size for one in extra), reverse=True)
    reduces = all(one.kind == "all-reduce" and one.dtype == "f32" for one in extra)
    fit = all(size <= limit for size, limit in zip(sizes, limits, strict=False))
    return reduces and len(sizes) <= len(limits) and fit


def _arrays(result: str) -> list[tuple[str, tuple[int, ...]]]:
    """List dtype and shape of the arrays in the type of a result."""
    return [
        (dtype, tuple(map(int, filter(None, shape.split(",")))))
        for dtype, shape in ARRAY.findall(result)
    ]


def _squeezed(one: Collective) -> Collective:
    """Drop axes of length 1, which XLA adds and removes as it likes."""
    return one._replace(shape=tuple(size for size in one.shape if size != 1))
