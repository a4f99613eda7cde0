"""What the name of a leaf and the leaves beside it tell about its axes."""

import itertools
import re
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from neuron_optax.axes.layouts import Layout
from neuron_optax.axes.libraries import NORM
from neuron_optax.axes.neurons import Axes, Neurons
from neuron_optax.axes.siblings import kernel_of
from neuron_optax.boxes import unbox
from neuron_optax.trees import named_leaves

MATRIX = r"(^|[/_])(kernel|weight|w)(_\w+)?$|(^|/)(embeddings?|lora_[ab])$"
VECTOR = r"(^|/)(bias|scale|b|offset|weight)$"
FIRST = Neurons(output=(0,))


class Leaves(NamedTuple):
    """What is known of the leaves of a tree.

    Attributes:
      shapes: shape of each leaf, by path.
      biases: path of the bias beside each kernel that has one.
    """

    shapes: dict[str, tuple[int, ...]]
    biases: dict[str, str]


def leaves_of(params: Any) -> Leaves:
    """Return the leaves that are trained: floating or complex, boxes taken off."""
    trained = lambda leaf: jnp.issubdtype(jnp.result_type(leaf), jnp.inexact)
    leaves = [*named_leaves(unbox(params))]
    arrays = [(path, x) for path, x in leaves if not callable(x) and trained(x)]
    shapes = {path: np.shape(leaf) for path, leaf in arrays}
    pairs = {kernel_of(path, shapes): path for path in shapes}
    return Leaves(shapes, {k: bias for k, bias in pairs.items() if k is not None})


def explained(path: str, leaves: Leaves, layout: Layout) -> bool:
    """Whether a rule for this leaf, its name or its bias accounts for all of its axes.

    A matrix by name has two axes (if the layout is that of its library), other leaves
    one, beside those its rule says are a stack. More are accounted for by a rule
    without ranks. One for some ranks goes by the name of the layer, which fits a stack
    of smaller layers, too: then the bias must have the rule's neurons, and no other
    axes its lengths but for inputs as many as outputs; without a bias, the layers
    beside it must tell.
    """
    shape, rule = leaves.shapes[path], layout.rule(path, len(leaves.shapes[path]))
    if path in layout.undecided:
        return False
    if rule is not None and rule.ranks is None:
        return True
    stack = len(layout.axes(path, shape).stack)
    matrix = re.search(MATRIX, path) and not re.search(rf"(?i){NORM}/[^/]*$", path)
    if len(shape) - stack <= 1:
        return True
    if rule is None and layout.rules and _is_torch(path) != (layout.fallback == FIRST):
        return False  # a name of another library, whose matrices are transposed
    if len(shape) - stack == 2 and matrix:
        return True
    if rule is None:
        return False
    if path not in leaves.biases:
        return _beside(path, leaves, layout)
    fits = fitting(shape, leaves.shapes[leaves.biases[path]])
    own = kept(layout.axes(path, shape))
    others = {axis for fit in fits for axis in own ^ {*fit}}
    channels = (
        {stack, stack + 1} if _is_torch(path) else {len(shape) - 2, len(shape) - 1}
    )
    return own in map(set, fits) and others <= channels


def kept(axes: Axes) -> set[int]:
    """Return the axes of a leaf that are not fan-in."""
    return {*axes.whole.output, *axes.whole.stack}


def fitting(shape: tuple[int, ...], bias: tuple[int, ...]) -> list[tuple[int, ...]]:
    """List the axes that have the lengths of a bias, in its order; one of each set.

    Ones at the end of a bias, as Equinox's convolutions have, may be left out.
    """
    while True:
        fits = {}
        for axes in itertools.permutations(range(len(shape)), len(bias)):
            if tuple(shape[axis] for axis in axes) == bias:
                fits.setdefault(frozenset(axes), axes)  # the first is the most ordered
        if fits or len(bias) < 2 or bias[-1] != 1:
            return [*fits.values()]
        bias = bias[:-1]


def neurons_of(path: str, leaves: Leaves, default: Layout) -> Neurons | None:
    """Find the neurons of a kernel by the bias beside it.

    Axes with the lengths of the bias are its neurons. Where several have, the default
    decides if it is `explained`; else a ``weight`` has copies and output first, a
    ``kernel`` its output last and its copies where the bias has them, unless the
    layer's name says transposed.

    Returns:
      The neurons, ``None`` if they cannot be told.
    """
    shape, bias = leaves.shapes[path], leaves.shapes[leaves.biases[path]]
    fits = fitting(shape, bias)
    if len(fits) > 1:
        own = kept(default.axes(path, shape))
        if explained(path, leaves, default) and own in map(set, fits):
            fits = [fit for fit in fits if {*fit} == own]
        elif len(shape) > 2 and re.search(r"(?i)transpose|deconv|/w$", path):
            return None
        elif _is_torch(path):  # with taps it may be transposed: (in, out, taps)
            no_taps = len(shape) == len(fits[0]) + 1
            fits = [fit for fit in fits if fit == (*range(len(fit)),) and no_taps]
        else:
            fits = [fit for fit in fits if _output_last(fit, len(shape))]
    return _with_stack(fits[0], path, len(shape)) if len(fits) == 1 else None


def _output_last(fit: tuple[int, ...], ndim: int) -> bool:
    """Whether the output ends the leaf, after copies where the bias has them, too."""
    if [*fit] != sorted(fit):
        return ndim - 1 in fit
    return any(
        fit == (*range(copies), *range(ndim - len(fit) + copies, ndim))
        for copies in range(len(fit))
    )


def _with_stack(fit: tuple[int, ...], path: str, ndim: int) -> Neurons:
    """Tell copies from output among the axes that a bias has, in its order."""
    if len(fit) == ndim:
        return Neurons(output=...)
    if _is_torch(path):
        return Neurons(output=fit[-1:], stack=fit[:-1])
    if [*fit] != sorted(fit):
        return Neurons((ndim - 1,), tuple(axis for axis in fit if axis != ndim - 1))
    gaps = [n for n in range(1, len(fit)) if fit[n] != fit[n - 1] + 1]
    copies = gaps[-1] if gaps and fit[-1] == ndim - 1 else 0
    return Neurons(output=fit[copies:], stack=fit[:copies])


def _beside(path: str, leaves: Leaves, layout: Layout) -> bool:
    """Whether the layers beside one without a bias show that it is no stack."""
    module, _, layer = path.rpartition("/")[0].rpartition("/")
    prefix, shape = f"{module}/" if module else "", leaves.shapes[path]
    if layer in ("query", "key", "value", "out"):
        names = f"{prefix}query/kernel", f"{prefix}out/kernel"
        query, out = (leaves.shapes.get(name, ()) for name in names)
        return len(query) == len(out) == 3 and query[1:] == out[:2]
    stack = len(layout.axes(path, shape).stack)
    taps = shape[2 + stack :] if _is_torch(path) else shape[stack:-2]
    if layer.isdigit():  # in a list of layers
        return True
    if re.search(r"(Scan|Vmap)[A-Z]", path) or len(taps) > 2:
        return False
    if len(taps) == 2 and taps[0] not in (1, taps[1]):
        return False
    vectors = [
        [*itertools.dropwhile(lambda size: size == 1, size)]
        for leaf, size in leaves.shapes.items()
        if re.fullmatch(f"{re.escape(prefix)}[^/]*", re.sub(VECTOR, "", leaf))
        and re.search(VECTOR, leaf)
    ]
    return any(len(vector) == stack + 1 for vector in vectors)


def _is_torch(path: str) -> bool:
    return re.search(r"(^|[/_])weight(_\w+)?$", path) is not None
