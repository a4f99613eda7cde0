"""What the name of a leaf and the vectors around it tell about its axes."""

import itertools
import re
from collections.abc import Iterator, Mapping, Sequence

from neuron_optax.axes.layouts import Layout
from neuron_optax.axes.neurons import Neurons
from neuron_optax.axes.siblings import kernel_of

Shapes = Mapping[str, tuple[int, ...]]

MATRIX = r"(^|[/_])(kernel|weight|w)(_\w+)?$|(^|/)(embeddings?|lora_[ab])$"
VECTOR = r"(^|/)(bias|scale|b|offset)$"


def explained(path: str, shapes: Shapes, layout: Layout) -> bool:
    """Whether a rule made for this leaf or its name accounts for all of its axes.

    A matrix by name has two axes, other leaves one. More are accounted for by a rule
    without ranks or with a stack. A rule for some ranks goes by the name of the layer,
    which also fits a stack of smaller ones: then a bias beside the leaf must tell, or
    the vectors around it, which all have two axes in a stack.
    """
    rank = len(shapes[path])
    rule = layout.rule(path, rank)
    if rule is not None and rule.ranks is None:
        return True
    if path in layout.undecided:
        return False
    if rank <= (2 if re.search(MATRIX, path) else 1):
        return True
    if rule is None:
        return False
    stacked = isinstance(rule.neurons, Neurons) and rule.neurons.stack
    return bool(stacked) or bias_of(path, shapes) is not None or _flat(path, shapes)


def bias_of(path: str, shapes: Shapes) -> str | None:
    """Return the path of the bias beside a kernel."""
    return next((leaf for leaf in shapes if kernel_of(leaf, shapes) == path), None)


def neurons_beside(
    bias: Sequence[int], path: str, shapes: Shapes, default: Layout
) -> Neurons | None:
    """Find the neurons of a leaf as those of the bias beside it.

    Axes with the lengths of those of the bias are its neurons. If several have them,
    the default decides where it is `explained`; else Flax's and Haiku's weights have
    their output last and stacked copies first, torch's both first.

    Returns:
      The neurons, ``None`` if they cannot be told.
    """
    shape, bias = shapes[path], _without_ones(bias)
    if tuple(bias) == shape:
        return Neurons(output=...)
    fitting = [*_fitting(shape, bias)]
    if len(fitting) > 1:
        of = default.axes(path, shape)
        kept = tuple(sorted(of.output + of.stack))
        if explained(path, shapes, default) and kept in fitting:
            fitting = [kept]
        elif re.search(r"(^|/)weight$", path):
            fitting = [kept for kept in fitting if kept == tuple(range(len(bias)))]
        else:
            ends = [_ends(len(shape), len(bias), first) for first in range(len(bias))]
            fitting = [kept for kept in fitting if kept in ends]
    if len(fitting) != 1:
        return None
    return _stacked(fitting[0], len(shape), first=path.endswith("weight"))


def _fitting(shape: Sequence[int], bias: Sequence[int]) -> Iterator[tuple[int, ...]]:
    """Yield the axes that have the lengths of the bias, in its order if they can."""
    wanted, places = list(bias), range(len(shape))
    ordered = [
        axes
        for axes in itertools.combinations(places, len(bias))
        if [shape[axis] for axis in axes] == wanted
    ]
    yield from ordered or (
        axes
        for axes in itertools.permutations(places, len(bias))
        if [shape[axis] for axis in axes] == wanted
    )


def _ends(ndim: int, count: int, first: int) -> tuple[int, ...]:
    """Return ``count`` axes, ``first`` of them from the front, others from the end."""
    return (*range(first), *range(ndim - count + first, ndim))


def _stacked(kept: tuple[int, ...], ndim: int, first: bool) -> Neurons:
    """Take what leads before the output for a stack."""
    if first or list(kept) != sorted(kept):
        copies = len(kept) - 1 if first else 0
    else:  # the output is the run of axes that ends with the last
        gaps = [n for n in range(1, len(kept)) if kept[n] != kept[n - 1] + 1]
        copies = gaps[-1] if gaps and kept[-1] == ndim - 1 else 0
    return Neurons(output=kept[copies:], stack=kept[:copies])


def _without_ones(bias: Sequence[int]) -> tuple[int, ...]:
    bias = list(bias)
    while len(bias) > 1 and bias[-1] == 1:
        bias.pop()
    return tuple(bias)


def _flat(path: str, shapes: Shapes) -> bool:
    """Whether a vector of the nearest module that has any is not one of a stack."""
    while path:
        path = path.rpartition("/")[0]
        near = [
            sum(size > 1 for size in shape)
            for leaf, shape in shapes.items()
            if leaf.startswith(f"{path}/" if path else "") and re.search(VECTOR, leaf)
        ]
        if near:
            return min(near) <= 1
    return False
