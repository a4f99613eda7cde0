"""What comparisons with published packages share: leaves, draws, steps, distances.

Our side has Flax's layout, theirs torch's; both are compared in torch's.
"""

import importlib
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

MARKS = [pytest.mark.authors, pytest.mark.filterwarnings("ignore")]  # theirs to mend

STEPS, RATE = 20, 0.01
EPS = np.finfo(np.float32).eps
# Each side rounds a parameter below 2 by half an eps a step, and an update below 0.1,
# of some ten operations, by half an eps more.
TOLERANCE = 2 * STEPS * EPS
# JAX corrects the bias with b2 rounded to float32, by a quarter of an eps: 1 - b2 is
# off by that over 0.001, its root by half as much, of updates of 3 RATE on average.
ADAM_TOLERANCE = TOLERANCE + STEPS * 3 * RATE * EPS / 4 / 0.001 / 2


class Leaf(NamedTuple):
    """A leaf of ours and how torch has it.

    Attributes:
      shape: of ours.
      name: of theirs.
      moved: returns ours with the axes of theirs.
    """

    shape: tuple[int, ...]
    name: str
    moved: Callable[[np.ndarray], np.ndarray] = np.asarray


def rows(leaf):
    """Move (in, ...) to (out, in), outputs folded into one axis."""
    return leaf.reshape(len(leaf), -1).T


def folded_rows(leaf):
    """Move (..., out) to (out, in), inputs folded into one axis."""
    return leaf.reshape(-1, leaf.shape[-1]).T


def taps_last(leaf):
    """Move (high, wide, in, out) to (out, in, high, wide)."""
    return leaf.transpose(3, 2, 0, 1)


DENSE = {"Dense_0/kernel": Leaf((12, 6), "dense.weight", rows)}
BIAS = {"Dense_0/bias": Leaf((6,), "dense.bias")}
CONV = {"Conv_0/kernel": Leaf((2, 3, 4, 5), "conv.weight", taps_last)}
EMBEDDING = {"embedding": Leaf((9, 8), "embed.weight")}


def draw(seed, *shape):
    return np.random.default_rng(seed).standard_normal(shape, np.float32)


def start(leaves):
    """Draw weights below 1."""
    shapes = enumerate(leaf.shape for leaf in leaves.values())
    drawn = [draw((0, n), *shape) / 5 for n, shape in shapes]
    return dict(zip(leaves, drawn, strict=True))


def gradients(leaves):
    """Draw gradients for every step; their size spans two decades between entries."""
    sizes = [
        np.exp(2 * draw((0, 0, n), *x.shape)) for n, x in enumerate(leaves.values())
    ]
    return [
        {
            path: size * draw((step, n), *size.shape)
            for n, (path, size) in enumerate(zip(leaves, sizes, strict=True))
        }
        for step in range(1, STEPS + 1)
    ]


def ours(optimizer, leaves, params=None, grads=None):
    """Yield our params after every step, in torch's layout."""
    params = jax.tree.map(jnp.asarray, params or start(leaves))
    state, update = optimizer.init(params), jax.jit(optimizer.update)
    for gradient in grads or gradients(leaves):
        updates, state = update(gradient, state, params)
        params = optax.apply_updates(params, updates)
        yield {path: x.moved(np.asarray(params[path])) for path, x in leaves.items()}


def theirs(make, leaves, params=None):
    """Yield the params of ``make(named)`` after every step, gradients their own."""
    torch = importlib.import_module("torch")
    in_torch = lambda tree: {
        path: torch.tensor(x.moved(np.asarray(tree[path])).copy())
        for path, x in leaves.items()
    }
    tensors = in_torch(params or start(leaves))
    tensors = {path: leaf.requires_grad_() for path, leaf in tensors.items()}
    optimizer = make({x.name: tensors[path] for path, x in leaves.items()})
    for gradient in gradients(leaves):
        for path, grad in in_torch(gradient).items():
            tensors[path].grad = grad
        optimizer.step()
        yield {path: leaf.detach().numpy().copy() for path, leaf in tensors.items()}


def agree(actual, expected, tolerance=TOLERANCE):
    """Assert that all leaves agree after every step."""
    for step, (mine, other) in enumerate(zip(actual, expected, strict=True), start=1):
        assert mine.keys() == other.keys()
        for path, leaf in mine.items():
            where = f"{path}, step {step}"
            np.testing.assert_allclose(
                leaf, other[path], rtol=0, atol=tolerance, err_msg=where
            )


def apart(actual, expected):
    """Return the leaves that end a hundred tolerances apart."""
    (*_, mine), (*_, other) = actual, expected
    furthest = {path: np.abs(leaf - other[path]).max() for path, leaf in mine.items()}
    return {path for path, far in furthest.items() if far > 100 * TOLERANCE}
