"""Moves of axes between a torch tensor and a JAX leaf, exact both ways."""

import functools
import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

Shape = tuple[int, ...]
Part = tuple[str, Any]  # a torch tensor and which of its rows, ``...`` for all


class Move(NamedTuple):
    """View, permute and flip the axes of a torch tensor.

    Attributes:
      source: shape of the torch tensor.
      target: shape of the leaf.
      view: shape in which the torch tensor is seen, by default its own.
      order: axes of the view as they come in the leaf, by default as they are.
      flipped: axes, as they come in the leaf, that are reversed.
    """

    source: Shape
    target: Shape
    view: Shape
    order: Shape
    flipped: Shape = ()

    def forward(self, array: np.ndarray) -> np.ndarray:
        """Return a torch tensor with the axes of the leaf."""
        seen = array.reshape(self.view).transpose(self.order)
        return np.flip(seen, self.flipped).reshape(self.target)

    def back(self, array: np.ndarray) -> np.ndarray:
        """Return a leaf with the axes of the torch tensor."""
        seen = array.reshape([self.view[axis] for axis in self.order])
        inverse = np.argsort(self.order)
        return np.flip(seen, self.flipped).transpose(inverse).reshape(self.source)


class Link(NamedTuple):
    """A leaf and the torch tensors it consists of.

    Attributes:
      path: of the leaf.
      pieces: concatenated along their rows; of each the parts are summed.
      move: from the concatenation to the leaf.
    """

    path: str
    pieces: tuple[tuple[Part, ...], ...]
    move: Move

    @property
    def names(self) -> list[str]:
        """The torch tensors, each once."""
        return list(dict.fromkeys(name for parts in self.pieces for name, _ in parts))

    def gather(self, tensors: Mapping[str, np.ndarray]) -> np.ndarray:
        """Return the leaf that torch tensors make."""
        pieces = [
            functools.reduce(np.add, [tensors[name][rows] for name, rows in parts])
            for parts in self.pieces
        ]
        whole = pieces[0] if len(pieces) == 1 else np.concatenate(pieces)
        return self.move.forward(whole)

    def scatter(self, leaf: np.ndarray, tensors: Mapping[str, np.ndarray]) -> None:
        """Write a leaf into torch tensors of zeros; of a sum, the first has it all."""
        whole, start = self.move.back(leaf), 0
        for (name, rows), *_ in self.pieces:
            if len(self.pieces) == 1:
                tensors[name][rows] = whole
                return
            stop = start + len(tensors[name][rows])
            tensors[name][rows] = whole[start:stop]
            start = stop


def same(source: Shape, leaf: Shape) -> Move:
    """Keep the shape."""
    return Move(source, source, source, tuple(range(len(source))))


def as_is(source: Shape, leaf: Shape) -> Move:
    """Keep the axes; a vector fills a leaf of any shape in the order of its rows."""
    vector = len(source) == 1 and math.prod(leaf) == source[0]
    return Move(source, leaf, source, (0,)) if vector else same(source, leaf)


def linear(source: Shape, leaf: Shape) -> Move:
    """Turn (out, in) to (in, out); either may be several axes of the leaf."""
    rows, columns = source
    for split in range(1, len(leaf)):
        inputs, outputs = leaf[:split], leaf[split:]
        if (math.prod(inputs), math.prod(outputs)) == (columns, rows):
            return Move(source, leaf, source, (1, 0))
    return Move(source, (columns, rows), source, (1, 0))


def dense(source: Shape, leaf: Shape) -> Move:
    """Do as `linear` with inputs of one axis.

    Raises:
      ValueError: for several, which torch may have had in another order.
    """
    move, columns = linear(source, leaf), source[1]
    first = next((length for length in leaf if length != 1), 1)
    if move.target == leaf and columns not in (1, first):
        raise ValueError(
            f"a leaf of shape {leaf} has its {columns} inputs on several axes, and "
            "torch's may be flattened from another order, (C, H, W) where Flax has "
            f"(H, W, C): give a leaf of shape {source[::-1]} and reshape it"
        )
    return move


def convolution(source: Shape, leaf: Shape) -> Move:
    """Turn (out, in, *taps) to (*taps, in, out)."""
    outputs, inputs, *taps = source
    order = (*range(2, len(source)), 1, 0)
    return Move(source, (*taps, inputs, outputs), source, order)


def transposed(
    source: Shape, leaf: Shape, transpose_kernel: bool | None, groups: int
) -> Move:
    """Turn (in, out, *taps) to (*taps, in, out) and reverse the taps.

    A ``transpose_kernel`` of Flax is (*taps, out, in), and Flax reverses its taps.

    Raises:
      ValueError: for groups, and where neither shape nor ``transpose_kernel`` says
        which it is.
    """
    if groups > 1:
        raise ValueError(f"torch has {groups} groups, Flax's ConvTranspose has none")
    inputs, outputs, *taps = source
    if inputs == outputs and transpose_kernel is None:
        raise ValueError(
            f"a transposed convolution of {inputs} to {outputs} channels fits a kernel "
            "with and without transpose_kernel: say transpose_kernel=False or True"
        )
    spatial = tuple(range(2, len(source)))
    swapped = (*taps, outputs, inputs)
    if transpose_kernel or (transpose_kernel is None and leaf == swapped):
        return Move(source, swapped, source, (*spatial, 1, 0))
    reversed_taps = tuple(range(len(taps)))
    plain = (*taps, inputs, outputs)
    return Move(source, plain, source, (*spatial, 0, 1), reversed_taps)


def transposed_rows(source: Shape, leaf: Shape, groups: int) -> Move:
    """Turn (in, out/groups, *taps) to (out, in/groups, *taps), taps reversed."""
    inputs, outputs, *taps = source
    view = (groups, inputs // groups, outputs, *taps)
    order = (0, 2, 1, *range(3, len(view)))
    target = (groups * outputs, inputs // groups, *taps)
    return Move(source, target, view, order, tuple(range(3, len(view))))
