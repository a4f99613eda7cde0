"""How a statistic is remembered: the third of the four parts of a strategy.

The first update is step 1. A memory has the shape of the statistic.
"""

import math
from collections.abc import Callable
from numbers import Real
from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array

from neuron_optax.numerics import require_number, require_within


def _as_is(memory: Array, step: Array) -> Array:
    return memory


class Accumulator(NamedTuple):
    """A memory of one leaf as pure functions.

    Attributes:
      init: ``init(blank)``, the memory before the first update; ``blank`` has the
        shape, dtype and sharding of the statistic and may be abstract.
      update: ``update(memory, statistic)``, the memory after one more statistic.
      read: ``read(memory, step)``, the value remembered after ``step`` updates.
      skip: ``skip(memory, steps)``, the memory after so many statistics of zero, with
        which rows of a table catch up; ``None`` if it is not known.

    Example:
      >>> smallest = Accumulator(
      ...     init=lambda blank: jnp.full_like(blank, jnp.inf),
      ...     update=jnp.minimum,
      ...     read=lambda memory, step: memory,
      ... )
      >>> float(smallest.update(smallest.init(jnp.zeros(())), jnp.array(3.0)))
      3.0
    """

    init: Callable[[Array], Array]
    update: Callable[[Array, Array], Array]
    read: Callable[[Array, Array], Array]
    skip: Callable[[Array, Array], Array] | None = None


def latest() -> Accumulator:
    """Remember the last statistic alone.

    Returns:
      An accumulator in units of the statistic.

    Example:
      >>> float(latest().update(jnp.array(1.0), jnp.array(3.0)))
      3.0
    """
    return Accumulator(
        init=jnp.zeros_like,
        update=lambda memory, statistic: statistic,
        read=_as_is,
        skip=lambda memory, steps: jnp.where(steps > 0, 0, memory),
    )


def total(initial: float | Array = 0.0) -> Accumulator:
    r"""Sum of all statistics, :math:`a_t = a_{t-1} + s_t`.

    Args:
      initial: :math:`a_0`, in units of the statistic, not negative.

    Returns:
      An accumulator in units of the statistic.

    Raises:
      ValueError: if ``initial`` is a negative number.

    Example:
      >>> accumulator = total(initial=0.5)
      >>> memory = accumulator.init(jnp.zeros((1, 2)))
      >>> accumulator.update(memory, jnp.ones((1, 2))).tolist()
      [[1.5, 1.5]]
    """
    if isinstance(initial, Real) and not initial >= 0:
        raise ValueError(f"initial accumulator value must be >= 0, got {initial}")
    return Accumulator(
        lambda blank: jnp.full_like(blank, initial), jnp.add, _as_is, _as_is
    )


def average() -> Accumulator:
    r"""Mean of all statistics, :math:`\tfrac1t \sum_{i \le t} s_i`.

    Returns:
      An accumulator in units of the statistic; its memory is the sum.

    Example:
      >>> accumulator = average()
      >>> memory = accumulator.update(jnp.array(1.0), jnp.array(3.0))
      >>> float(accumulator.read(memory, jnp.array(2)))
      2.0
    """
    return Accumulator(
        jnp.zeros_like, jnp.add, lambda memory, step: memory / step, _as_is
    )


def ema(decay: float | Array, debias: bool = True) -> Accumulator:
    r"""Exponential moving average, :math:`a_t = \beta a_{t-1} + (1 - \beta) s_t`.

    Args:
      decay: :math:`\beta`, in ``[0, 1)``. It is raised to the power of the step in
        the dtype of the memory; a traced bfloat16 keeps the digits it came with.
      debias: read :math:`a_t / (1 - \beta^t)`, which corrects for :math:`a_0 = 0`.

    Returns:
      An accumulator in units of the statistic; its memory is :math:`a_t`.

    Raises:
      ValueError: if ``decay`` is a number outside ``[0, 1)``.

    Reference:
      Kingma and Ba, *Adam* (2014), arXiv:1412.6980, section 3 for the correction.

    Example:
      >>> accumulator = ema(0.5)
      >>> memory = accumulator.update(jnp.zeros(()), jnp.array(3.0))
      >>> float(memory), float(accumulator.read(memory, jnp.array(1)))
      (1.5, 3.0)
    """
    require_decay("decay", decay)

    def update(memory, statistic):
        return decay * memory + (1 - decay) * statistic

    def corrected(memory, step):
        beta = jnp.asarray(decay, memory.dtype)
        return memory / (1 - beta**step)

    def decayed(memory, steps):
        return memory * jnp.asarray(decay, memory.dtype) ** steps

    read = corrected if debias else _as_is
    return Accumulator(jnp.zeros_like, update, read, decayed)


def maximum() -> Accumulator:
    r"""Largest statistic so far, :math:`a_t = \max(a_{t-1}, s_t)` from :math:`a_0 = 0`.

    Returns:
      An accumulator in units of the statistic.

    Example:
      >>> float(maximum().update(jnp.array(5.0), jnp.array(3.0)))
      5.0
    """
    return Accumulator(jnp.zeros_like, jnp.maximum, _as_is, _as_is)


def warmed_up(
    accumulator: Accumulator, steps: int | Array, start: float | Array
) -> Accumulator:
    r"""Read what moves, in the first steps, from a given value to what is remembered.

    .. math:: (1 - \omega_t)\, s + \omega_t\, a_t, \qquad \omega_t = \min(t/T, 1)

    The first few statistics of a neuron say little. Steps are those of the run: a
    neuron that is active late is not warmed up.

    Args:
      accumulator: :math:`a`, which remembers from the first step on.
      steps: :math:`T \ge 1`, until it is read alone.
      start: :math:`s`, in units of the statistic.

    Returns:
      An accumulator in units of the statistic, with the memory of ``accumulator``.

    Raises:
      ValueError: if ``steps`` is a number below 1.

    Example:
      >>> accumulator = warmed_up(latest(), steps=4, start=1.0)
      >>> [float(accumulator.read(jnp.array(9.0), jnp.array(t))) for t in (1, 2, 4, 8)]
      [3.0, 5.0, 9.0, 9.0]
    """
    require_within("steps", steps, 1)

    def read(memory, step):
        share = jnp.minimum(step / jnp.asarray(steps, memory.dtype), 1)
        return (1 - share) * start + share * accumulator.read(memory, step)

    return accumulator._replace(read=read)


def compounded(
    gain: float | Array,
    low: float | Array | None = None,
    high: float | Array | None = None,
) -> Accumulator:
    r"""Product of gains within bounds, from :math:`a_0 = 1`.

    .. math:: a_t = \min(\max(a_{t-1} (1 + \gamma s_t), l), h)

    Args:
      gain: :math:`\gamma`, in units of one over the statistic; below the inverse of
        its largest size, so that :math:`a` stays positive.
      low: :math:`l`, without unit; ``None`` for no bound.
      high: :math:`h`, without unit; ``None`` for no bound.

    Returns:
      An accumulator without unit.

    Raises:
      ValueError: if ``gain`` is a negative number, or 1 is not within the bounds.

    Example:
      >>> accumulator = compounded(0.5, high=2.0)
      >>> memory = accumulator.update(accumulator.init(jnp.zeros(())), jnp.array(1.0))
      >>> float(memory), float(accumulator.update(memory, jnp.array(1.0)))
      (1.5, 2.0)
    """
    require_within("gain", gain, 0)
    require_one_within(low, high)

    def update(memory, statistic):
        return jnp.clip(memory * (1 + gain * statistic), low, high)

    return Accumulator(jnp.ones_like, update, _as_is, _as_is)


def stepwise(
    increase: float | Array,
    decrease: float | Array,
    low: float | Array | None = None,
    high: float | Array | None = None,
) -> Accumulator:
    r"""Slow steps up, fast steps down, by the sign of the statistic, from 1.

    .. math::
      a_t = a_{t-1} + \kappa \text{ where } s_t > 0, \qquad
      a_t = (1 - \phi)\, a_{t-1} \text{ where } s_t < 0

    Args:
      increase: :math:`\kappa`, without unit.
      decrease: :math:`\phi`, in ``[0, 1)``, without unit.
      low: least memory, without unit; ``None`` for no bound.
      high: largest memory, without unit; ``None`` for no bound.

    Returns:
      An accumulator without unit.

    Raises:
      ValueError: if ``increase`` is a negative number, ``decrease`` one outside
        ``[0, 1)``, or 1 is not within the bounds.

    Reference:
      Jacobs, *Increased rates of convergence through learning rate adaptation* (1988).

    Example:
      >>> accumulator = stepwise(increase=0.25, decrease=0.5)
      >>> accumulator.update(jnp.ones(3), jnp.array([7.0, -7.0, 0.0])).tolist()
      [1.25, 0.5, 1.0]
    """
    require_within("increase", increase, 0)
    require_decay("decrease", decrease)
    require_one_within(low, high)

    def update(memory, statistic):
        shrunk = jnp.where(statistic < 0, memory * (1 - decrease), memory)
        grown = jnp.where(statistic > 0, memory + increase, shrunk)
        return jnp.clip(grown, low, high)

    return Accumulator(jnp.ones_like, update, _as_is, _as_is)


def require_one_within(low: float | Array | None, high: float | Array | None) -> None:
    """Raise ``ValueError`` if 1, where a learned memory starts, is out of bounds."""
    least = low if isinstance(low, Real) else 0
    most = high if isinstance(high, Real) else math.inf
    if not 0 <= least <= 1 <= most:
        raise ValueError(f"bounds must be 0 <= low <= 1 <= high, got {low=}, {high=}")


def require_decay(name: str, decay: float | Array) -> None:
    """Raise ``ValueError`` if ``decay`` is a number outside ``[0, 1)``."""
    require_number(name, decay)
    if isinstance(decay, Real) and not 0 <= decay < 1:
        raise ValueError(f"{name} must be in [0, 1), got {decay}")
