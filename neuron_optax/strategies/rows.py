"""Rates per row of a table, for gradients of the rows that a batch touches."""

from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax

from neuron_optax.accumulators import Accumulator, average, ema, total
from neuron_optax.axes import Neurons
from neuron_optax.core import NeuronState, scale_per_neuron
from neuron_optax.numerics import require_within
from neuron_optax.rates import Rate, bounded, inverse_root, power
from neuron_optax.rows import lazy_rows, row_chain
from neuron_optax.statistics import Statistic, mean_square, touched
from neuron_optax.strategies.alias import (
    Scalar,
    decoupled_decay,
    require_adam,
)

ROWS = Neurons(output=(0,))
Untouched = Literal["lazy", "catch_up"]


class CatchUpState(NamedTuple):
    """State of rows that make up for the steps they missed.

    Attributes:
      seen: the step that last touched each row, int32; a tree like the tables with
        fan-in axes at length 1.
      inner: the state of `scale_per_neuron`.

    Example:
      >>> optimizer = row_rmsprop(0.1, untouched="catch_up")
      >>> (state, *_) = optimizer.init(jnp.zeros((1000, 16)))
      >>> state.inner.seen.shape, state.inner.seen.dtype.name
      ((1000, 1), 'int32')
    """

    seen: Any
    inner: NeuronState


def scale_per_row(
    statistic: Statistic,
    accumulator: Accumulator,
    rate: Rate,
    *,
    untouched: Untouched = "lazy",
    direction: optax.GradientTransformation | None = None,
) -> optax.GradientTransformationExtraArgs:
    r"""Do as `scale_per_neuron` for each row of a table that the batch touches.

    .. math::
      a_i \leftarrow \mathrm{accumulate}(a_i, \mathrm{statistic}(g_i, w_i)), \qquad
      u_i = \mathrm{rate}(\mathrm{read}(a_i, t)) \cdot \mathrm{direction}(g_i)

    for touched rows :math:`i`; :math:`t` counts all steps. Rates are not stored.

    Args:
      statistic: what is measured of the gradient of a row and its weights.
      accumulator: how it is remembered.
      rate: how the remembered value becomes the factor.
      untouched: what happens to the memory of the other rows: ``"lazy"``, nothing;
        ``"catch_up"``, what a dense step would do to it (a running mean decays), made
        up for when the row is next touched, by `Accumulator.skip`. They are the same
        where a statistic of zero leaves a memory as it is: sums, counts.
      direction: what is scaled, run as `lazy_rows`; momentum takes an array as large
        as the table.

    Returns:
      A transformation with a `RowState`: one number per row, with ``"catch_up"`` one
      int32 more. ``update`` takes ``row_ids``, the `Rows` of each table at its path.

    Raises:
      ValueError: for another ``untouched``; for ``"catch_up"`` of a direction, whose
        rows would have to move in steps that do not touch them, or with an accumulator
        that cannot skip; as `scale_per_neuron` and `lazy_rows`.

    Note:
      A rate that looks at all neurons of a layer (`redistributed`) sees the touched
      rows alone, other than in a dense step.

    Example:
      >>> from neuron_optax import ema, inverse_root, mean_square, unique_rows
      >>> optimizer = scale_per_row(mean_square, ema(0.5), inverse_root())
      >>> table = jnp.zeros((1000, 2))
      >>> rows = unique_rows(jnp.array([7, 3, 7]), table_size=1000)
      >>> grads = jnp.array([[3.0, -3.0], [4.0, 4.0], [0.0, 0.0], [0.0, 0.0]])
      >>> updates, _ = optimizer.update(grads, optimizer.init(table), row_ids=rows)
      >>> updates[:2].tolist()
      [[1.0, -1.0], [1.0, 1.0]]
    """
    if untouched not in ("lazy", "catch_up"):
        raise ValueError(f"untouched must be 'lazy' or 'catch_up', got {untouched!r}")
    scaled = scale_per_neuron(
        statistic,
        accumulator,
        rate,
        neurons=ROWS,
        direction=direction,
        store_rate=False,
    )
    if untouched == "lazy":
        return lazy_rows(scaled)
    if direction is not None:
        raise ValueError("untouched must be 'lazy' with a direction: it moves rows")
    if accumulator.skip is None:
        raise ValueError("untouched must be 'lazy' with an accumulator without skip")
    return lazy_rows(_caught_up(scaled, accumulator))


def _caught_up(scaled, accumulator):
    """Tell a memory of the steps since its row was seen before it moves on."""

    def init(params):
        inner = scaled.init(params)
        seen = jax.tree.map(lambda a: jnp.zeros_like(a, jnp.int32), inner.memory)
        return CatchUpState(seen, inner)

    def update(updates, state, params=None, **extra_args):
        step, memory = state.inner.step, state.inner.memory
        missed = jax.tree.map(lambda seen: step - seen, state.seen)
        memory = jax.tree.map(accumulator.skip, memory, missed)
        inner = state.inner._replace(memory=memory)
        updates, inner = scaled.update(updates, inner, params, **extra_args)
        # the maximum is the step; made of ``seen``, it is written after that is read
        seen = jax.tree.map(lambda s: jnp.maximum(s, inner.step), state.seen)
        return updates, CatchUpState(seen, inner)

    return optax.GradientTransformationExtraArgs(init, update)


def row_adagrad(
    learning_rate: optax.ScalarOrSchedule,
    initial_accumulator_value: Scalar = 0.0,
    eps: Scalar = 1e-10,
    weight_decay: optax.ScalarOrSchedule = 0.0,
    weight_decay_mask: Any = None,
    *,
    decay: Literal["decoupled", "l2"] = "decoupled",
    low: Scalar | None = None,
    high: Scalar | None = None,
) -> optax.GradientTransformationExtraArgs:
    r"""Do as `rowwise_adagrad` for the touched rows alone, at the cost of the batch.

    With :math:`g_i` the gradient of row :math:`i` (:math:`k` entries), summed over all
    places of the batch that have its id,

    .. math::
      a_i \leftarrow a_i + \tfrac1k \lVert g_i \rVert^2, \qquad
      \Delta_i = -\eta\, \big( g_i / (\sqrt{a_i} + \epsilon) + \lambda w_i \big)

    It equals the dense step, whose untouched rows have gradients of zero; with decay,
    that with ``lazy=True``.

    Args:
      learning_rate: :math:`\eta`, in units of the parameter; scalar or schedule.
      initial_accumulator_value: :math:`a_0 \ge 0`, in units of the gradient squared.
      eps: added to :math:`\sqrt a`, in units of the gradient, positive.
      weight_decay: :math:`\lambda`, of touched rows; multiplied by the learning rate if
        decoupled.
      weight_decay_mask: what decays, a tree of booleans or a function of the params
        (in ``static_args`` under ``optax.inject_hyperparams``).
      decay: ``"decoupled"``, or ``"l2"`` for decay that enters gradient and statistic.
      low: least factor; ``None`` for no bound.
      high: largest factor; ``None`` for no bound.

    Returns:
      A `row_chain`; its state is one number per row.

    Raises:
      ValueError: for a hyperparameter out of range, an unknown ``decay``, or as
        `row_chain`.

    Note:
      From :math:`a_0 = 0` the first step of a row is as long for a small gradient as
      for a large one. Where most rows are touched a few times only, start from about
      the mean square of the gradient of one place (1e-7 in
      ``examples/train_recommender.py``, whose loss is the mean of a batch of 8192).

    Reference:
      Naumov et al., *DLRM* (2019), arXiv:1906.00091; ``EXACT_ROWWISE_ADAGRAD`` of
      https://github.com/pytorch/FBGEMM, which has the same decays.

    Example:
      >>> from neuron_optax import apply_row_updates, take_rows, unique_rows
      >>> table, optimizer = jnp.ones((1000, 2)), row_adagrad(0.5)
      >>> state = optimizer.init(table)
      >>> rows = unique_rows(jnp.array([1, 2, 1]), table_size=1000)
      >>> compact = take_rows(table, rows)
      >>> grads = jax.grad(lambda compact: jnp.sum(compact[rows.slots]))(compact)
      >>> updates, state = optimizer.update(grads, state, compact, row_ids=rows)
      >>> apply_row_updates(table, updates, rows)[:4, 0].tolist()
      [1.0, 0.5, 0.5, 1.0]
    """
    if decay not in ("decoupled", "l2"):
        raise ValueError(f"decay must be 'decoupled' or 'l2', got {decay!r}")
    scaled = scale_per_row(
        mean_square,
        total(initial_accumulator_value),
        bounded(inverse_root(eps), low, high),
    )
    decayed = decoupled_decay(weight_decay, weight_decay_mask)
    parts = (decayed, scaled) if decay == "l2" else (scaled, decayed)
    return row_chain(*parts, optax.scale_by_learning_rate(learning_rate))


def row_rmsprop(
    learning_rate: optax.ScalarOrSchedule,
    decay: Scalar = 0.9,
    eps: Scalar = 1e-8,
    weight_decay: optax.ScalarOrSchedule = 0.0,
    weight_decay_mask: Any = None,
    *,
    untouched: Untouched = "lazy",
    low: Scalar | None = None,
    high: Scalar | None = None,
) -> optax.GradientTransformationExtraArgs:
    r"""Do as `neuron_rmsprop` for the touched rows alone, at the cost of the batch.

    With :math:`g_i` the gradient of a touched row (:math:`k` entries),

    .. math::
      v_i \leftarrow \beta^{1 + n_i} v_i + (1 - \beta)\, \tfrac1k \lVert g_i \rVert^2,
      \qquad
      \Delta_i = -\eta\, \big( g_i / (\sqrt{v_i} + \epsilon) + \lambda w_i \big)

    :math:`n_i` is 0 if lazy, and to catch up the number of steps since the row was
    last touched, which equals the dense step without decay.

    Args:
      learning_rate: :math:`\eta`, in units of the parameter; scalar or schedule.
      decay: :math:`\beta`, in ``[0, 1)``.
      eps: added to :math:`\sqrt v`, in units of the gradient, positive.
      weight_decay: :math:`\lambda`, of touched rows, multiplied by the learning rate.
      weight_decay_mask: what decays, a tree of booleans or a function of the params
        (in ``static_args`` under ``optax.inject_hyperparams``).
      untouched: ``"lazy"`` or ``"catch_up"``, see `scale_per_row`.
      low: least factor; ``None`` for no bound.
      high: largest factor; ``None`` for no bound.

    Returns:
      A `row_chain`; its state is one number per row, and to catch up an int32 more.

    Raises:
      ValueError: for a hyperparameter out of range; as `scale_per_row`.

    Reference:
      Tieleman and Hinton, *RMSprop*, Coursera lecture 6.5 (2012), per row.

    Example:
      >>> optimizer = row_rmsprop(0.1, untouched="catch_up")
      >>> state = optimizer.init(jnp.zeros((1000, 16)))
      >>> sum(leaf.nbytes for leaf in jax.tree.leaves(state))
      8004
    """
    scaled = scale_per_row(
        mean_square,
        ema(decay, debias=False),
        bounded(inverse_root(eps), low, high),
        untouched=untouched,
    )
    return row_chain(
        scaled,
        decoupled_decay(weight_decay, weight_decay_mask),
        optax.scale_by_learning_rate(learning_rate),
    )


def row_adam_mini(
    learning_rate: optax.ScalarOrSchedule,
    b1: Scalar | None = None,
    b2: Scalar = 0.999,
    eps: Scalar = 1e-8,
    weight_decay: optax.ScalarOrSchedule = 0.0,
    weight_decay_mask: Any = None,
    *,
    untouched: Untouched = "lazy",
    low: Scalar | None = None,
    high: Scalar | None = None,
) -> optax.GradientTransformationExtraArgs:
    r"""Do as `adam_mini` for the touched rows alone, by default without momentum.

    With :math:`g_i` the gradient of a touched row (:math:`k` entries),

    .. math::
      m_i \leftarrow \beta_1 m_i + (1-\beta_1)\, g_i, \qquad
      v_i \leftarrow \beta_2^{1 + n_i} v_i
      + (1-\beta_2)\, \tfrac1k \lVert g_i \rVert^2, \qquad
      \Delta_i = -\eta\, \big( \hat m_i / (\sqrt{\hat v_i} + \epsilon)
      + \lambda w_i \big)

    :math:`n_i` is 0 if lazy, and to catch up the number of steps since the row was
    last touched, which equals the dense step without momentum and decay. The
    corrections for bias count all steps.

    Args:
      learning_rate: :math:`\eta`, in units of the parameter; scalar or schedule.
      b1: decay of the first moment, in ``[0, 1)``, which takes an array as large as
        the table; an untouched row does not coast. ``None`` for :math:`m = g`.
      b2: decay of the second moment, in ``[0, 1)``.
      eps: added to :math:`\sqrt{\hat v}`, in units of the gradient, positive.
      weight_decay: :math:`\lambda`, of touched rows, multiplied by the learning rate.
      weight_decay_mask: what decays, a tree of booleans or a function of the params
        (in ``static_args`` under ``optax.inject_hyperparams``).
      untouched: ``"lazy"``, or, without ``b1``, ``"catch_up"``; see `scale_per_row`.
      low: least factor; ``None`` for no bound.
      high: largest factor; ``None`` for no bound.

    Returns:
      A `row_chain`; its state is one number per row, :math:`m`, and to catch up an
      int32 per row.

    Raises:
      ValueError: for a hyperparameter out of range; as `scale_per_row`.

    Note:
      A row first touched late is corrected as if it had been looked at from the start,
      here as in the dense step and in torch's SparseAdam: without momentum its first
      step is up to :math:`1/\sqrt{1-\beta_2}` times the usual, 32 times by default.
      Give ``high``, or take `row_adagrad`, where rare rows matter.

    Reference:
      Zhang et al., *Adam-mini* (2024), arXiv:2406.16793, its rule for embeddings.

    Example:
      >>> optimizer = row_adam_mini(1e-3)
      >>> state = optimizer.init(jnp.zeros((1000, 16)))
      >>> sum(leaf.nbytes for leaf in jax.tree.leaves(state))
      4004
    """
    require_adam(0.0 if b1 is None else b1, b2, eps)
    scaled = scale_per_row(
        mean_square,
        ema(b2),
        bounded(inverse_root(eps), low, high),
        untouched=untouched,
        direction=None if b1 is None else optax.ema(b1),
    )
    return row_chain(
        scaled,
        decoupled_decay(weight_decay, weight_decay_mask),
        optax.scale_by_learning_rate(learning_rate),
    )


def row_frequency_sgd(
    learning_rate: optax.ScalarOrSchedule,
    exponent: Scalar = 0.5,
    weight_decay: optax.ScalarOrSchedule = 0.0,
    weight_decay_mask: Any = None,
    *,
    low: Scalar | None = None,
    high: Scalar | None = 100.0,
) -> optax.GradientTransformationExtraArgs:
    r"""Do as `frequency_sgd` for the touched rows alone: rare rows step further.

    .. math::
      f_i = \tfrac1t \#\{s \le t : g_{s,i} \ne 0\}, \qquad
      \Delta_i = -\eta\, \big( \min(f_i^{-p}, h)\, g_i + \lambda w_i \big)

    Without decay it equals the dense step, whose untouched rows have gradients of zero.

    Args:
      learning_rate: :math:`\eta`, in units of the parameter; scalar or schedule.
      exponent: :math:`p \ge 0`, without unit: a row touched in one step of a hundred
        steps ten times as far with 0.5, a hundred times with 1.
      weight_decay: :math:`\lambda`, of touched rows, multiplied by the learning rate.
      weight_decay_mask: what decays, a tree of booleans or a function of the params
        (in ``static_args`` under ``optax.inject_hyperparams``).
      low: least factor; ``None`` for no bound.
      high: :math:`h`, largest factor; ``None`` for no bound.

    Returns:
      A `row_chain`; its state is one number per row, how often it was touched.

    Raises:
      ValueError: for a hyperparameter out of range; as `row_chain`.

    Note:
      Not published; it answers the wish for larger steps where updates are rare.

    Example:
      >>> from neuron_optax import unique_rows
      >>> optimizer = row_frequency_sgd(0.1, exponent=1.0)
      >>> state = optimizer.init(jnp.zeros((1000, 1)))
      >>> for ids in ([5], [5, 7]):  # 7 is rarer
      ...     rows = unique_rows(jnp.array(ids), table_size=1000)
      ...     grads = jnp.ones((len(rows.ids), 1))
      ...     updates, state = optimizer.update(grads, state, row_ids=rows)
      >>> [round(float(u), 4) for u in updates[:, 0]]
      [-0.1, -0.2, -0.0]
    """
    require_within("exponent", exponent, 0)
    scaled = scale_per_row(touched, average(), bounded(power(-exponent), low, high))
    return row_chain(
        scaled,
        decoupled_decay(weight_decay, weight_decay_mask),
        optax.scale_by_learning_rate(learning_rate),
    )
