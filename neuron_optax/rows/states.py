"""State with one row per row of a table: read, moved and written where touched."""

import itertools
from typing import NamedTuple

import jax
import numpy as np
import optax

from neuron_optax.boxes import unbox
from neuron_optax.rows.growth import growth
from neuron_optax.rows.ids import rows_by_path, rows_of
from neuron_optax.rows.tables import check_slots, clear, read, write
from neuron_optax.trees import is_masked, named_leaves


class RowState(NamedTuple):
    """State of which each step moves the touched rows alone.

    Attributes:
      inner: the state of a transformation; its arrays have the rows of their tables.

    Example:
      >>> import jax.numpy as jnp
      >>> from neuron_optax import row_adagrad
      >>> (state, *_) = row_adagrad(0.1).init(jnp.zeros((1000, 16)))
      >>> isinstance(state, RowState), state.inner.memory.shape
      (True, (1000, 1))
    """

    inner: optax.OptState


def lazy_rows(
    inner: optax.GradientTransformation,
) -> optax.GradientTransformationExtraArgs:
    """Run a transformation on the touched rows alone, lazily: others wait as they are.

    Its state is made for the whole table. Every step reads the touched rows of it, lets
    ``inner`` move them as if they were a whole table, and writes them back. Where a
    gradient of zero leaves state and weights of a row as they are (AdaGrad) that equals
    the dense step; where state decays or momentum goes on (RMSprop, Adam) it does not.
    Numbers that are not of a row, a step counter above all, move with every step.

    Args:
      inner: whose state has rows like the params: momentum, Adam, AdaGrad, and with one
        number per row `scale_per_neuron` of rows. What averages params over all steps
        (``optax.contrib.schedule_free``) is not made for it.

    Returns:
      A transformation with a `RowState`; ``update`` takes ``row_ids``, the `Rows` of
      each table at its path.

    Raises:
      ValueError: at ``init``, naming the leaf, for a state that has other axes first,
        and for ``optax.MultiSteps``; at ``update``, for a table without `Rows`, or
        updates or params of another number.

    Note:
      ``lazy_rows(optax.scale_by_adam())`` is torch.optim.SparseAdam, but for eps, which
      that adds before the second moment is corrected for bias.

    Example:
      >>> import jax.numpy as jnp
      >>> from neuron_optax import unique_rows
      >>> table = jnp.zeros((4, 1))
      >>> momentum = lazy_rows(optax.trace(0.5))
      >>> state = momentum.init(table)
      >>> for ids in ([0, 1], [1, 2]):
      ...     rows = unique_rows(jnp.array(ids), table_size=4)
      ...     grads = jnp.ones((3, 1))  # the third slot has no row
      ...     updates, state = momentum.update(grads, state, row_ids=rows)
      >>> updates.ravel().tolist(), state.inner.trace.ravel().tolist()
      ([1.5, 1.0, 0.0], [1.0, 1.5, 1.0, 0.0])
    """
    moving = optax.with_extra_args_support(inner)

    def init(params):
        state = moving.init(params)
        _require_rows(moving.init, params, state, _owners(moving, params, state))
        return RowState(state)

    def update(updates, state, params=None, *, row_ids=None, **extra_args):
        rows = rows_by_path(row_ids)
        check_slots(unbox(updates), rows)
        check_slots(unbox(params), rows, "params")
        tables = [rows_of(rows, path) for path, _ in named_leaves(unbox(updates))]
        own = _owners(moving, updates, state.inner)
        leaves, structure = jax.tree.flatten(state.inner)
        _check_tables(state.inner, own, tables)
        touched = [
            read(leaf, tables[of]) if of >= 0 else leaf
            for of, leaf in zip(own, leaves, strict=True)
        ]
        touched = jax.tree.unflatten(structure, touched)
        updates, moved = moving.update(
            updates, touched, params, row_ids=row_ids, **extra_args
        )
        written = [
            write(old, tables[of], new.astype(old.dtype)) if of >= 0 else new
            for of, old, new in zip(own, leaves, jax.tree.leaves(moved), strict=True)
        ]
        cleared = map(clear, jax.tree.leaves(updates), tables)
        updates = jax.tree.unflatten(jax.tree.structure(updates), cleared)
        return updates, RowState(jax.tree.unflatten(structure, written))

    return optax.GradientTransformationExtraArgs(init, update)


def _owners(inner, tree, state):
    """Return for each leaf of a state the number of its table, -1 for none."""
    numbers = itertools.count()
    order = jax.tree.map(lambda _: next(numbers), unbox(tree))
    own = lambda leaf, number: number if np.ndim(leaf) else -1
    return jax.tree.leaves(
        optax.tree.map_params(
            inner,
            lambda leaf, of: leaf if is_masked(leaf) else own(leaf, of),
            unbox(state),
            order,
            transform_non_params=lambda _: -1,
            is_leaf=is_masked,
        )
    )


def _require_rows(init, params, state, owners):
    """Refuse a state with numbers of the tables that are not of one row each."""
    unfit = lambda node: isinstance(node, RowState | optax.MultiStepsState)
    for node in filter(unfit, jax.tree.leaves(state, is_leaf=unfit)):
        raise ValueError(
            "lazy_rows needs what is not row-aware yet and moves rows in every step "
            f"that touches them, got a {type(node).__name__}"
        )
    for leaf, of in zip(growth(init, params, state, RowState), owners, strict=True):
        if (leaf.grows or of >= 0) and not (leaf.has_rows and of >= 0):
            raise ValueError(
                f"{leaf.path} has the shape {leaf.shape}: lazy_rows needs states whose "
                "first axis is the rows of a table, or that do not grow with one"
            )


def _check_tables(state, owners, tables):
    """Refuse a state that was made for tables of other sizes."""
    for (path, leaf), of in zip(named_leaves(state), owners, strict=True):
        if of >= 0 and np.shape(leaf)[0] != tables[of].table_size:
            raise ValueError(
                f"{path} has {np.shape(leaf)[0]} rows, but row_ids are of a table of "
                f"{tables[of].table_size}: was the state made for other params?"
            )
