"""Rows read from tables, pooled into bags and written back."""

from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import PartitionSpec
from jaxtyping import Array, Float, Inexact

from neuron_optax.boxes import rebox, unbox
from neuron_optax.rows.ids import Rows, rows_by_path
from neuron_optax.trees import map_named, named_leaves


def take_rows(params: Any, row_ids: Any) -> Any:
    """Return the touched rows in place of the tables; other leaves as they are.

    Differentiate the loss by the result, not by the tables: the gradient of a table has
    the size of the table. A model that uses a whole table (a tied output head) needs
    the dense step.

    Args:
      params: tables (rows first), and whatever else the model has.
      row_ids: `Rows` at the paths of their tables.

    Returns:
      A tree like ``params``; tables of shape (V, ...) have become rows (slots, ...),
      zeros in slots without a row.

    Raises:
      TypeError: for what is no `Rows`.
      ValueError: for `Rows` at a path where there is no table.

    Example:
      >>> params = {"user": jnp.array([[0.0], [1.0], [2.0]]), "bias": jnp.zeros(4)}
      >>> from neuron_optax import unique_rows
      >>> rows = {"user": unique_rows(jnp.array([2, 2, 1]), table_size=3)}
      >>> compact = take_rows(params, rows)
      >>> compact["user"][rows["user"].slots].tolist(), compact["bias"].shape
      ([[2.0], [2.0], [1.0]], (4,))
    """
    rows, plain = _checked(params, row_ids)
    taken = map_named(
        lambda path, leaf: read(leaf, rows[path]) if path in rows else leaf, plain
    )
    return rebox(taken, params)


def apply_row_updates(params: Any, updates: Any, row_ids: Any) -> Any:
    """Apply updates as ``optax.apply_updates`` does, those of rows to their tables.

    Inside ``jit`` that donates ``params`` the tables are written in place. Without
    donation they are copied; and on CPU one in bfloat16 is, by XLA, in any case.

    Args:
      params: tables, and whatever else the model has.
      updates: as they come from the optimizer, given the gradients by `take_rows`.
      row_ids: `Rows` at the paths of their tables.

    Returns:
      A tree like ``params``; rows that are not in ``row_ids`` are as they were.

    Raises:
      TypeError: for what is no `Rows`.
      ValueError: naming the leaf, for `Rows` without a table, or updates with another
        number of rows.

    Example:
      >>> from neuron_optax import unique_rows
      >>> rows = unique_rows(jnp.array([2, 2, 1]), table_size=3)
      >>> updates = jnp.ones((len(rows.ids), 1))
      >>> apply_row_updates(jnp.zeros((3, 1)), updates, rows).tolist()
      [[0.0], [1.0], [1.0]]
    """
    rows, plain = _checked(params, row_ids)
    new = unbox(updates)
    check_slots(new, rows)

    def applied(path, leaf, update):
        if path not in rows:
            return optax.apply_updates(leaf, update)
        return add(leaf, rows[path], update)

    return rebox(map_named(applied, plain, new), params)


def embedding_bag(
    compact: Inexact[Array, "slot dim"],
    rows: Rows,
    weights: Float[Array, "*bags bag"] | None = None,
    pooling: Literal["sum", "mean"] = "sum",
) -> Inexact[Array, "*bags dim"]:
    r"""Pool the rows of several ids, those of the last axis of the batch.

    .. math:: \sum_j c_j w_{id_j} \quad\text{or}\quad
      \sum_j c_j w_{id_j} \big/ \textstyle\sum_j c_j

    Args:
      compact: the touched rows of one table, by `take_rows`.
      rows: the `Rows` of the table; padding and dropped ids add nothing.
      weights: :math:`c`, in the shape of the batch, no unit; ``None`` for ones.
      pooling: ``"sum"``, or ``"mean"``: the sum over that of the weights.

    Returns:
      One embedding per bag; zeros for a bag without ids, or whose weights sum to 0.

    Note:
      FBGEMM divides a weighted mean by the number of ids, and its gradient by nothing.

    Raises:
      ValueError: for another pooling, for ids without a last axis, or for weights of
        another shape.

    Example:
      >>> from neuron_optax import unique_rows
      >>> table = jnp.array([[0.0], [1.0], [2.0]])
      >>> bags = jnp.array([[1, 2], [2, -1]])
      >>> rows = unique_rows(bags, table_size=3, padding_id=-1)
      >>> embedding_bag(take_rows(table, rows), rows, pooling="mean").tolist()
      [[1.5], [2.0]]
    """
    if pooling not in ("sum", "mean"):
        raise ValueError(f"pooling must be 'sum' or 'mean', got {pooling!r}")
    if not rows.slots.ndim:
        raise ValueError("a bag is the last axis of the ids, which have no axis")
    shape = rows.slots.shape
    if weights is not None and weights.shape != shape:
        raise ValueError(f"weights must have the shape {shape}, got {weights.shape}")
    share = rows.kept if weights is None else jnp.where(rows.kept, weights, 0)
    share = jnp.expand_dims(share.astype(compact.dtype), -1)
    pooled = jnp.sum(share * compact[rows.slots], axis=-2)
    if pooling == "sum":
        return pooled
    whole = jnp.sum(share, axis=-2)
    return pooled / jnp.where(whole == 0, 1, whole)


def read(table: Array | np.ndarray, rows: Rows) -> Array:
    """Return the rows of one table, zeros in slots without a row."""
    spec = _spec(table)
    return (
        jnp.asarray(table)
        .at[rows.ids]
        .get(
            mode="fill",
            fill_value=0,
            indices_are_sorted=True,
            unique_indices=True,
            out_sharding=spec and PartitionSpec(None, *spec[1:]),
        )
    )


def write(table: Array | np.ndarray, rows: Rows, new: Array) -> Array:
    """Return one table with its rows replaced."""
    return jnp.asarray(table).at[rows.ids].set(new, **_to(table))


def add(table: Array | np.ndarray, rows: Rows, update: Array) -> Array:
    """Return one table with the update of its rows added, in the wider of their dtypes.

    Where both have the same, nothing is read.
    """
    if jnp.result_type(table) != jnp.result_type(update):
        new = read(table, rows) + update
        return write(table, rows, new.astype(table.dtype))
    return jnp.asarray(table).at[rows.ids].add(update, **_to(table))


def clear(update: Array, rows: Rows) -> Array:
    """Return the update of one table with zeros in slots without a row."""
    real = rows.ids < rows.table_size
    return jnp.where(real.reshape(-1, *[1] * (update.ndim - 1)), update, 0)


def check_slots(tree: Any, rows: dict[str, Rows], holder: str = "updates") -> None:
    """Refuse updates or params of a table that are not its touched rows."""
    for path, leaf in named_leaves(tree):
        if path in rows and np.shape(leaf)[:1] != rows[path].ids.shape:
            raise ValueError(
                f"{path}: {holder} must have the {rows[path].ids.size} slots of their "
                f"row_ids, as from take_rows, got the shape {np.shape(leaf)}"
            )


def _checked(params, row_ids):
    rows, plain = rows_by_path(row_ids), unbox(params)
    shapes = {path: np.shape(leaf) for path, leaf in named_leaves(plain)}
    for path, of in rows.items():
        if path not in shapes:
            raise ValueError(f"{path}: row_ids has Rows, params are {sorted(shapes)}")
        if shapes[path][:1] != (of.table_size,):
            raise ValueError(
                f"{path}: Rows are of a table of {of.table_size} rows, got the shape "
                f"{shapes[path]}"
            )
    return rows, plain


def _to(table):
    return {
        "mode": "drop",
        "indices_are_sorted": True,
        "unique_indices": True,
        "out_sharding": _spec(table),
    }


def _spec(table):
    """Return how the type of a table says that it is sharded, if it does."""
    spec = jax.typeof(table).sharding.spec
    return spec if any(spec) else None
