"""What a contender has to learn: a model, its data, and what is measured of it."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import optax
from flax import nnx


class Draw(NamedTuple):
    """A problem as one seed draws it.

    Attributes:
      params: a tree of arrays, where training starts.
      rest: of the model, such as the running means of a batch normalisation.
      batches: from the number of a first step and a count of steps to their batches,
        stacked.
      validation: what the learning rate is chosen on.
      test: what is reported.
    """

    params: Any
    rest: Any
    batches: Callable[[int, int], Any]
    validation: Any
    test: Any


class Problem(NamedTuple):
    """What a contender has to learn.

    Attributes:
      name: of its records.
      steps: of a training.
      draw: from a seed to where training starts, and its data.
      loss: of params, rest and a batch; returns the loss, to be differentiated, and
        the new rest.
      measure: of params, rest and a part of the data; returns named numbers, of which
        ``loss`` is the one that chooses.
      l2: weights of rank 2 and more, times this, are added to their gradient.
      decoupled: they shrink by this share in every step, less as the learning rate
        rises and falls, however high it is.
      make: from an optimizer and whether it moves touched rows alone to the optimizer
        of all params, and to a step; ``None`` for the gradient of ``loss``.
    """

    name: str
    steps: int
    draw: Callable[[int], Draw]
    loss: Callable[[Any, Any, Any], tuple[jax.Array, Any]]
    measure: Callable[[Any, Any, Any], dict[str, jax.Array]]
    l2: float = 0.0
    decoupled: float = 0.0
    make: Callable[[Any, bool], tuple[Any, Callable[..., Any]]] | None = None


def split(model: nnx.Module) -> tuple[Any, Any, Callable[[Any, Any], Any]]:
    """Return params and rest of a model as dicts, and what joins the two."""
    graph, *states = nnx.split(model, nnx.Param, ...)
    structures = [jax.tree.structure(state) for state in states]

    def join(*dicts):
        inside = [
            jax.tree.unflatten(structure, jax.tree.leaves(of))
            for structure, of in zip(structures, dicts, strict=True)
        ]
        return nnx.merge(graph, *inside)

    return *map(nnx.to_pure_dict, states), join


def rest_of(model: nnx.Module) -> Any:
    """Return what a model holds beside its params, as a dict."""
    return nnx.to_pure_dict(nnx.state(model, nnx.Not(nnx.Param)))


def cross_entropy(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """Return the mean cross-entropy, in nats."""
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()
