"""Arithmetic that every other file may use: wide enough, derivatives finite."""

import math
from numbers import Real
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array


def widen(array: Any) -> Array:
    """Return ``array`` with at least 32 bits for each number."""
    return jnp.asarray(array, jnp.promote_types(jnp.result_type(array), jnp.float32))


def widen_apart(array: Any) -> Array:
    """Return ``widen(array)``, which XLA does not share with other uses of ``array``.

    What two loops share it would keep in memory, four bytes for each entry, instead of
    converting it as they read it.
    """
    dtype = jnp.result_type(array)
    narrow = jnp.promote_types(dtype, jnp.float32) != dtype
    return widen(jax.lax.optimization_barrier(array) if narrow else array)


def require_number(name: str, value: Any) -> None:
    """Raise ``TypeError`` if ``value`` is neither a number nor an array."""
    if not isinstance(value, Real) and not hasattr(value, "dtype"):
        by_name = "; give a layout by name, neurons=" * hasattr(value, "rules")
        kind = type(value).__name__
        raise TypeError(f"{name} must be a number or an array, got {kind}{by_name}")


def require_within(
    name: str, value: Any, least: int, most: float | int = math.inf
) -> None:
    """Raise ``ValueError`` if ``value`` is a number outside ``[least, most]``."""
    require_number(name, value)
    if isinstance(value, Real) and not least <= float(value) <= most:
        raise ValueError(f"{name} must be in [{least}, {most}], got {value}")


def root(value: Array) -> Array:
    r"""Square root :math:`\sqrt a`, whose derivative at 0 is 0 instead of infinite.

    Example:
      >>> import jax
      >>> jax.grad(lambda g: root(g**2))(0.0).item()
      0.0
    """
    zero = value == 0
    return jnp.where(zero, 0.0, jnp.sqrt(jnp.where(zero, 1.0, value)))
