"""The learning rate that each neuron last got."""

import math
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array

from neuron_optax.boxes import unbox
from neuron_optax.core import NeuronState
from neuron_optax.introspection.states import Place, as_state, injected_rate, walk
from neuron_optax.strategies import ApolloState
from neuron_optax.trees import named_leaves

Factor = Callable[[Array, Array], Array]


def learning_rates(
    state: Any,
    learning_rate: optax.ScalarOrSchedule | None = None,
    *,
    factor: Factor | None = None,
) -> Any:
    r"""Return the learning rate that each neuron last got, :math:`\eta_t r_i`.

    Minus the rate times the direction is the step, before weight decay, of a strategy
    that ends in `scale_per_neuron` and the learning rate. What the number means for
    the others (`nero`, `neuron_lars`, `normuon`, ...) is in ``MEANING`` and `report`.

    Args:
      state: of an optimizer, or what holds it: a train state, an nnx optimizer;
        chained, masked, partitioned, injected, or restored from a checkpoint as it was
        or as dicts. States with rates are found by their class, or their fields.
      learning_rate: :math:`\eta`, in units of the parameter; a schedule is read at the
        last step. ``None`` for that of ``optax.inject_hyperparams``, the one around
        the rates or the only one beside them. Give 1 for `layerwise` and
        `scale_by_layer`, whose factor is the rate itself, and for parts with rates of
        their own.
      factor: ``factor(memory, step)`` of states that store no factors
        (``store_rate=False``, tables of rows): :math:`r`, made of what is remembered.

    Returns:
      A tree like the params of one number per neuron, fan-in axes at length 1 (an axis
      of blocks is two); arrays also inside ``jit``. ``optax.MaskedNode`` (or what a
      checkpoint made of it) stands where no rate is kept. Where a leaf has several (a
      chain of two), it is their product.
      In units of the parameter over those of the direction: of a gradient in
      `neuron_adagrad`, without any in `weight_norm_adam`. 0 for a neuron that was not
      finite in the last step, but this step's :math:`\eta` times its last factor if
      `isolate_nonfinite` is around it; :math:`\eta` before the first.

    Raises:
      ValueError: if no state keeps rates, no learning rate is given or injected, it is
        not one number, or a factor of a leaf is not stored beside another that is.

    Example:
      >>> from neuron_optax import neuron_adagrad
      >>> optimizer, params = neuron_adagrad(0.5), {"kernel": jnp.ones((2, 2))}
      >>> grads = {"kernel": jnp.array([[1.0, 10.0], [1.0, 10.0]])}
      >>> _, state = optimizer.update(grads, optimizer.init(params))
      >>> [round(float(rate), 3) for rate in learning_rates(state, 0.5)["kernel"][0]]
      [0.5, 0.05]
    """
    kept = list(_kept(state, factor))
    if not kept:
        raise ValueError(
            "no rates are in the state: it has no NeuronState that stores them (muown "
            "and optimizers of Optax have none; for store_rate=False and tables of "
            "rows give factor=(memory, step) -> factor)"
        )
    if factor is None:
        _check_stored(state, kept)
    found = ((injected_rate(node), place.parts) for node, place in walk(state))
    injected = [of for of in found if of[0] is not None]
    bases = [_base(of, learning_rate, injected) for of in kept]
    return _merged(bases, [of.rates for of in kept])


def has_rates(state: Any, factor: Factor | None = None) -> bool:
    """Whether a state keeps rates, or numbers of which ``factor`` makes them."""
    return any(True for _ in _kept(state, factor))


class _Kept(NamedTuple):
    """Rates that a state keeps, after how many steps, and where it stands."""

    step: Any
    rates: Any
    place: Place


def _kept(state: Any, factor: Factor | None) -> Iterator[_Kept]:
    """Yield the factors of every state that stores them, or of which they are made."""
    for node, place in walk(state):
        of = as_state(NeuronState, node) or as_state(ApolloState, node)
        if of and jax.tree.leaves(of.rate):
            yield _Kept(of.step, unbox(of.rate), place)
        elif of and factor and jax.tree.leaves(getattr(of, "memory", ())):
            made = jax.tree.map(lambda a, of=of: factor(a, of.step), unbox(of.memory))
            yield _Kept(of.step, made, place)


def _check_stored(state: Any, kept: list[_Kept]) -> None:
    """Refuse to leave a factor that is not stored out of a product."""
    stored = {path for of in kept for path, _ in named_leaves(of.rates)}
    for node, _ in walk(state):
        of = as_state(NeuronState, node)
        if of and not jax.tree.leaves(of.rate):
            for path, _ in named_leaves(unbox(of.memory)):
                if path in stored:
                    raise ValueError(
                        f"{path} has two factors, of which one is not stored: give "
                        "factor=(memory, step) -> factor"
                    )


def _base(kept: _Kept, learning_rate: Any, injected: list[Any]) -> Any:
    """Return the learning rate of the last step."""
    base: Any = learning_rate
    if callable(learning_rate):
        base = learning_rate(jnp.maximum(kept.step - 1, 0))
    if base is None:
        base = kept.place.injected
    if base is None:  # a sibling in the same part of a partition, if it is the only one
        parts = kept.place.parts
        near = [rate for rate, of in injected if parts[: len(of)] == of]
        if len(near) != 1:
            raise ValueError(
                "learning_rate must be given, or be a hyperparameter of that name of "
                "optax.inject_hyperparams around the rates, or the only one beside "
                f"them, of which there are {len(near)}"
            )
        (base,) = near
    if np.ndim(base):
        raise ValueError(
            f"learning_rate must be one number, got the shape {np.shape(base)}: read "
            "the state of vmapped optimizers under vmap"
        )
    return base


def _merged(bases: list[Any], trees: list[Any]) -> Any:
    """Multiply the trees where they are not masked, and by the base of the first."""
    pairs = zip(bases, trees, strict=True)
    there = [pair for pair in pairs if jax.tree.leaves(pair[1])]  # masked, or restored
    if not there:
        return trees[0]
    bases, trees = map(list, zip(*there, strict=True))
    if jax.tree_util.all_leaves(trees):
        if len({np.ndim(tree) for tree in trees}) > 1:
            raise ValueError("two rates of one leaf must have the same blocks")
        return bases[0] * math.prod(trees)
    top = lambda tree: jax.tree.leaves(tree, is_leaf=lambda part: part is not tree)
    parts = zip(*map(top, trees), strict=True)
    structure = jax.tree.structure(trees[0], is_leaf=lambda part: part is not trees[0])
    return jax.tree.unflatten(structure, [_merged(bases, list(of)) for of in parts])
