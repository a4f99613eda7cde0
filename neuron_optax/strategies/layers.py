"""Rates fixed per layer; nothing is measured."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax

from neuron_optax.boxes import box_numbers, rebox, unbox
from neuron_optax.core import NeuronState
from neuron_optax.strategies.alias import Scalar, adam, decoupled_decay, times
from neuron_optax.trees import (
    cast_like,
    check_dtypes,
    check_leaves,
    is_masked,
    map_named,
    move,
    named_leaves,
)


def scale_by_layer(
    learning_rates: Mapping[str, optax.ScalarOrSchedule],
    default: optax.ScalarOrSchedule | None = None,
    direction: optax.GradientTransformation | None = None,
) -> optax.GradientTransformationExtraArgs:
    r"""Scale a direction by the rate of the layer, :math:`u = \eta_\ell\, d`.

    Args:
      learning_rates: :math:`\eta_\ell` by pattern, scalar or schedule, in units of the
        parameter over those of the update. A pattern is searched in the leaf's path
        (``re.search``); the first that matches counts, so write ``layer_1/``, which is
        not in ``layer_10/kernel``.
      default: rate of leaves that match no pattern; ``None`` if there are none.
      direction: what is scaled, without sign and learning rate; ``None`` for the
        update itself.

    Returns:
      A transformation whose state is a `NeuronState` with one rate per leaf.

    Raises:
      ValueError: at ``init``, listing the leaves that match no pattern and have no
        default, or the patterns that are the first to match no leaf although none is
        masked away.
      TypeError: for rates that are no mapping; at ``init``, for a leaf that is not
        floating or complex.

    Example:
      >>> optimizer = scale_by_layer({"head": 0.5}, default=0.25)
      >>> grads = {"body": jnp.ones(2), "head": jnp.ones(2)}
      >>> update, _ = optimizer.update(grads, optimizer.init(grads))
      >>> update["body"].tolist(), update["head"].tolist()
      ([0.25, 0.25], [0.5, 0.5])
    """
    inner = optax.with_extra_args_support(direction or optax.identity())
    if not isinstance(learning_rates, Mapping):
        raise TypeError(
            "learning_rates must map patterns of paths to rates, such as "
            f"{{'head': 0.1}}, got {learning_rates!r}"
        )
    learning_rates = dict(learning_rates)

    def rates(tree, step):
        def rate(path, leaf):
            matches = (r for p, r in learning_rates.items() if re.search(p, path))
            value = next(matches, default)
            value = value(step) if callable(value) else value
            dtype = jnp.promote_types(jnp.finfo(jnp.result_type(leaf)).dtype, "float32")
            return jnp.full([1] * jnp.ndim(leaf), jnp.asarray(value), dtype)

        return map_named(rate, tree)

    def init(params):
        check_dtypes(unbox(params))
        _check_patterns(learning_rates, default, params)
        step = jnp.zeros([], jnp.int32)
        rate = box_numbers(rates(unbox(params), step), params, lambda path: _no_names)
        return NeuronState(step, (), rate, inner.init(params))

    def update(updates, state, params=None, **extra_args):
        check_leaves(unbox(updates), unbox(state.rate), unbox(params))
        rate = rates(unbox(updates), state.step)
        scaled, moved = move(inner, updates, state.direction, params, extra_args)
        scaled = jax.tree.map(lambda r, u: r * u, rate, unbox(scaled))
        step = jnp.asarray(optax.safe_increment(state.step))
        new = NeuronState(step, (), rebox(rate, state.rate), moved)
        return cast_like(rebox(scaled, updates), updates), cast_like(new, state)

    return optax.GradientTransformationExtraArgs(init, update)


def layerwise(
    learning_rates: Mapping[str, optax.ScalarOrSchedule],
    default: optax.ScalarOrSchedule | None = None,
    direction: optax.GradientTransformation | None = None,
    weight_decay: optax.ScalarOrSchedule = 0.0,
    weight_decay_mask: Any = None,
) -> optax.GradientTransformationExtraArgs:
    r"""A fixed rate or schedule for each layer, over any direction.

    .. math::
      \Delta = -\eta_\ell\, (\mathrm{direction}(g) + \lambda w)

    Args:
      learning_rates: :math:`\eta_\ell` by pattern, see `scale_by_layer`.
      default: rate of leaves that match no pattern; ``None`` if there are none.
      direction: what is scaled, without sign and learning rate; ``None`` for Adam with
        Optax's defaults and a finite derivative at zero gradients.
      weight_decay: :math:`\lambda`, multiplied by the layer's rate.
      weight_decay_mask: what decays, a tree of booleans or a function of the params
        (in ``static_args`` under ``optax.inject_hyperparams``).

    Returns:
      A chain; the rates are in its `NeuronState`.
      Its rates: the factor is the rate itself: read with a learning rate of 1.

    Raises:
      ValueError: at ``init``, as `scale_by_layer`.

    Note:
      Nothing is measured, so there are no neurons, biases or bounds to choose. For a
      rate per neuron within the layers pass `scale_per_neuron` as the direction.

    Example:
      >>> optimizer = layerwise({"body": 1e-3, "head": 1e-2})
      >>> grads = {"body": jnp.ones(1), "head": jnp.ones(1)}
      >>> update, _ = optimizer.update(grads, optimizer.init(grads))
      >>> [f"{float(update[layer][0]):.0e}" for layer in ("body", "head")]
      ['-1e-03', '-1e-02']
    """
    decayed = optax.chain(
        direction or adam(),
        decoupled_decay(weight_decay, weight_decay_mask),
    )
    scaled = scale_by_layer(learning_rates, default, decayed)
    return optax.chain(scaled, optax.scale(-1.0))


def layerwise_decay(
    learning_rate: optax.ScalarOrSchedule,
    decay: Scalar,
    layers: Sequence[str],
    default: optax.ScalarOrSchedule | None = None,
    direction: optax.GradientTransformation | None = None,
    weight_decay: optax.ScalarOrSchedule = 0.0,
    weight_decay_mask: Any = None,
) -> optax.GradientTransformationExtraArgs:
    r"""Discriminative fine-tuning: the rate shrinks from the top layer downwards.

    .. math::
      \eta_k = \eta\, \gamma^{K-k}, \qquad k = 1 \ldots K \text{ from the input up}

    Args:
      learning_rate: :math:`\eta` of the top layer, scalar or schedule.
      decay: :math:`\gamma`, in ``(0, 1]``, without unit.
      layers: patterns of the layers from the input to the top, see `scale_by_layer`.
      default: rate of leaves that match no pattern; ``None`` if there are none.
      direction: what is scaled, without sign and learning rate; ``None`` for Adam with
        Optax's defaults and a finite derivative at zero gradients.
      weight_decay: :math:`\lambda`, multiplied by the layer's rate.
      weight_decay_mask: what decays, a tree of booleans or a function of the params
        (in ``static_args`` under ``optax.inject_hyperparams``).

    Returns:
      A chain; the rates are in its `NeuronState`.
      Its rates: the factor is the rate itself: read with a learning rate of 1.

    Raises:
      ValueError: if ``decay`` is a number outside ``(0, 1]`` or a layer is named twice;
        at ``init``, as `layerwise`.

    Reference:
      Howard and Ruder, *ULMFiT* (2018), arXiv:1801.06146, section 3.2.

    Example:
      >>> optimizer = layerwise_decay(1e-2, decay=0.1, layers=["body", "head"])
      >>> grads = {"body": jnp.ones(1), "head": jnp.ones(1)}
      >>> update, _ = optimizer.update(grads, optimizer.init(grads))
      >>> [f"{float(update[layer][0]):.0e}" for layer in ("body", "head")]
      ['-1e-03', '-1e-02']
    """
    if isinstance(decay, int | float) and not 0 < decay <= 1:
        raise ValueError(f"decay must be in (0, 1], got {decay}")
    if isinstance(layers, str) or len(set(layers)) < len(layers):
        raise ValueError(f"layers must be distinct patterns in a list, got {layers!r}")

    depths = reversed(range(len(layers)))
    rates = {
        layer: times(learning_rate, decay**depth)
        for layer, depth in zip(layers, depths, strict=True)
    }
    return layerwise(rates, default, direction, weight_decay, weight_decay_mask)


def _no_names(names: tuple[Any, ...]) -> tuple[None, ...]:
    return (None,) * len(names)


def _check_patterns(learning_rates, default, params):
    """Refuse leaves without a rate and patterns without a leaf."""
    masked = [n for _, n in named_leaves(params, is_masked) if is_masked(n)]
    first = {
        path: next((p for p in learning_rates if re.search(p, path)), None)
        for path, _ in named_leaves(unbox(params))
    }
    unmatched = [path for path, pattern in first.items() if pattern is None]
    unused = [p for p in learning_rates if p not in first.values()]
    if unmatched and default is None:
        raise ValueError(
            f"no pattern of {list(learning_rates)} matches {unmatched}, and there is "
            "no default"
        )
    if unused and first and not masked:
        raise ValueError(
            f"patterns {unused} are the first to match no leaf of {list(first)}"
        )
