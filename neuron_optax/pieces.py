"""Arrays that are pieces, inside ``shard_map``: reductions over all of their pieces.

Axes to reduce are numbers, of the array, and names, of the mesh axes that cut it.
"""

import math
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from jaxtyping import Array

Along = Sequence[int | str]


def manual_axes() -> tuple[str, ...]:
    """Return the mesh axes along which arrays are pieces here."""
    return tuple(jax.sharding.get_abstract_mesh().manual_axes)


def require_whole(array: Array, what: str) -> None:
    """Refuse to work on what may be a piece.

    Raises:
      NotImplementedError: inside ``shard_map``, unless it checks (``check_vma``) that
        the array is the same on every device.
    """
    if may_be_piece(array):
        raise NotImplementedError(
            f"inside shard_map over {manual_axes()} a leaf may be a piece of {what}: "
            "use jit"
        )


def may_be_piece(array: Array) -> bool:
    """Whether an array may differ along a mesh axis, as far as JAX checks."""
    return any(_cuts(name, array) for name in manual_axes())


def sum_over(array: Array, along: Along) -> Array:
    """Sum over axes, which keep the length 1, and over the pieces of the array.

    Args:
      array: summed.
      along: numbers of its axes and, inside ``shard_map``, names of mesh axes. What is
        known not to differ along a mesh axis is whole there and not summed.

    Example:
      >>> sum_over(jnp.ones((2, 3)), (0,)).tolist()
      [[2.0, 2.0, 2.0]]
    """
    return _over(jnp.sum, jax.lax.psum, array, along)


def mean_over(array: Array, along: Along) -> Array:
    """Average over axes and pieces, see `sum_over`.

    Example:
      >>> mean_over(jnp.array([[1.0], [3.0]]), (0,)).tolist()
      [[2.0]]
    """
    return _over(jnp.mean, jax.lax.pmean, array, along)


def max_over(array: Array, along: Along) -> Array:
    """Take the largest over axes and pieces, see `sum_over`.

    Example:
      >>> max_over(jnp.array([[1.0], [3.0]]), (0,)).tolist()
      [[3.0]]
    """
    return _over(jnp.max, jax.lax.pmax, array, along)


def size_over(array: Array, along: Along) -> int:
    """Count the entries along axes and pieces, see `sum_over`.

    Example:
      >>> size_over(jnp.ones((2, 3)), (0,))
      2
    """
    axes, names = _split(array, along)
    own = math.prod(array.shape[axis] for axis in axes)
    return own * math.prod(jax.lax.axis_size(name) for name in names)


def _over(
    local: Callable[..., Array],
    collective: Callable[..., Array],
    array: Array,
    along: Along,
) -> Array:
    axes, names = _split(array, along)
    reduced = local(array, axis=axes, keepdims=True)
    return collective(reduced, names) if names else reduced


def _split(array: Array, along: Along) -> tuple[tuple[int, ...], tuple[str, ...]]:
    """Return the axes of the array and the mesh axes that cut it."""
    axes = tuple(axis for axis in along if not isinstance(axis, str))
    names = tuple(axis for axis in along if isinstance(axis, str))
    return axes, tuple(name for name in names if _cuts(name, array))


def differs(array: Array, name: str) -> bool:
    """Whether ``shard_map`` checks and knows that pieces differ along a mesh axis."""
    return name in jax.typeof(array).manual_axis_type.varying


def _cuts(name: str, array: Array) -> bool:
    """Whether pieces differ along a mesh axis; they may, where JAX does not check."""
    checked = differs(jax.lax.axis_index(name), name)
    return not checked or differs(array, name)
