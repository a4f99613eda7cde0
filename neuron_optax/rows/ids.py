"""The rows of a table that a batch touches: every one once, in arrays of fixed size.

Slots that no row fills have ids from the size of the table on: reads of them give
zeros, writes to them are dropped.
"""

import dataclasses
import operator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Int

from neuron_optax.trees import named_leaves


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Rows:
    """The rows of one table that a batch touches, made by `unique_rows`.

    Attributes:
      ids: of the rows, ascending, each once; from ``table_size`` on in slots without a
        row, of which the last is always one.
      slots: for each id of the batch, where its row stands in ``ids``; one that was
        dropped or is padding has a slot without a row. Give them in place of the ids
        to a model that has the rows of `take_rows` in place of its table.
      kept: for each id of the batch, whether its row is among ``ids``.
      dropped: how many ids were not in the table, or had no slot, int32.
      table_size: rows of the table; static.

    Example:
      >>> import jax.numpy as jnp
      >>> rows = unique_rows(jnp.array([7, 3, 7]), table_size=10)
      >>> rows.ids.tolist(), rows.slots.tolist()
      ([3, 7, 12, 13], [1, 0, 1])
    """

    ids: Int[Array, " slot"]
    slots: Int[Array, "*batch"]
    kept: Bool[Array, "*batch"]
    dropped: Int[Array, ""]
    table_size: int = dataclasses.field(metadata={"static": True})


def unique_rows(
    ids: Array | np.ndarray,
    table_size: int,
    size: int | None = None,
    padding_id: int | None = None,
) -> Rows:
    """Find the rows of a table that a batch of ids touches.

    Args:
      ids: integers in ``[0, table_size)``, of any shape, as often repeated as you like.
      table_size: rows of the table.
      size: slots for distinct rows; ``None`` for as many as there are ids, or rows in
        the table if those are fewer. Fewer slots make a faster step where ids repeat.
      padding_id: an id that stands for none, -1 for example; it is not counted.

    Returns:
      `Rows` of one or two slots more than ``size``, so that no table has as many.

    Raises:
      TypeError: for ids or sizes that are not integers.
      ValueError: for sizes out of range. For ids out of range, negative ones included,
        and for more distinct ones than ``size``; inside ``jit``, where their values are
        not known, both are dropped and counted, of the latter the largest.

    Note:
      Without ``jax_enable_x64`` JAX cuts 64-bit ids to 32 on their way into ``jit``,
      where they are not to be told any more: check or hash them before.

    Example:
      >>> import jax.numpy as jnp
      >>> bags = jnp.array([[7, 3], [7, -1]])  # the second has one id
      >>> rows = unique_rows(bags, table_size=10, padding_id=-1)
      >>> rows.kept.tolist(), int(rows.dropped)
      ([[True, True], [True, False]], 0)
    """
    table_size = operator.index(table_size)
    most = 2**31 - 3 - np.size(ids)  # slots without a row are numbered beyond
    if not 0 < table_size <= most:
        raise ValueError(f"table_size must be in [1, {most}], got {table_size}")
    if size is not None and operator.index(size) < 0:
        raise ValueError(f"size must not be negative, got {size}")
    ids, meant = _checked(ids, table_size, size, padding_id)
    distinct = min(ids.size if size is None else size, ids.size, table_size)
    slots = distinct + 1 + (distinct + 1 == table_size)

    inside = meant & (ids >= 0) & (ids < table_size)
    ids = jnp.where(inside, ids, table_size).astype(jnp.int32)
    ordered = jnp.sort(ids.ravel())
    first = (jnp.diff(ordered, prepend=-1) > 0) & (ordered < table_size)
    slot = jnp.where(first, jnp.cumsum(first) - 1, slots)
    slot = jnp.where(slot < distinct, slot, slots)
    padding = table_size + jnp.arange(slots, dtype=jnp.int32)
    unique = padding.at[slot].set(ordered, mode="drop")
    place = jnp.searchsorted(unique, ids)
    kept = inside & (unique[place] == ids)
    dropped = jnp.sum(meant & ~kept, dtype=jnp.int32)
    return Rows(unique, place, kept, dropped, table_size)


def rows_by_path(row_ids: Any) -> dict[str, Rows]:
    """Return the `Rows` of every table by its path.

    Raises:
      TypeError: naming the leaf, for what is no `Rows`.
    """
    found = dict(named_leaves(row_ids, is_leaf=lambda node: isinstance(node, Rows)))
    for path, rows in found.items():
        if not isinstance(rows, Rows):
            raise TypeError(
                f"{path}: row_ids must be Rows, made by unique_rows, got "
                f"{type(rows).__name__}"
            )
    return found


def rows_of(rows: dict[str, Rows], path: str) -> Rows:
    """Return the `Rows` of one table, or raise ``ValueError`` with its path."""
    if path not in rows:
        raise ValueError(f"{path}: row_ids must have its Rows, got {sorted(rows)}")
    return rows[path]


def _checked(ids, table_size, size, padding_id):
    """Return ids and which are meant; refuse wrong ones where values are known."""
    try:
        known = np.asarray(ids)
    except jax.errors.TracerArrayConversionError:
        known = None
    kind = ids.dtype if known is None else known.dtype
    if not jnp.issubdtype(kind, jnp.integer):
        raise TypeError(f"ids must be integers, got {kind}")
    if known is None:
        limits = jnp.iinfo(kind)
        padded = padding_id is not None and limits.min <= padding_id <= limits.max
        meant = jnp.ones(ids.shape, bool)
        if padded:
            meant = ids != np.asarray(padding_id, kind)
        most = min(table_size, limits.max)  # beyond it all are wrong alike
        return jnp.clip(ids, max(limits.min, -1), most).astype(jnp.int32), meant
    known = known.astype(np.int64)
    meant = np.ones(known.shape, bool) if padding_id is None else known != padding_id
    if (wrong := meant & ((known < 0) | (known >= table_size))).any():
        place = tuple(int(axis) for axis in np.argwhere(wrong)[0])
        raise ValueError(
            f"ids must be in [0, {table_size}), got {wrong.sum()} others, the first "
            f"{known[place]} at {place}; name one that stands for none as padding_id"
        )
    if size is not None and (count := len(np.unique(known[meant]))) > size:
        raise ValueError(
            f"size must be at least {count}, the number of distinct ids, got {size}"
        )
    return jnp.asarray(np.where(meant, known, -1), jnp.int32), jnp.asarray(meant)
