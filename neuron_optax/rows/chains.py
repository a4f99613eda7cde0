"""Optimizers of tables alone, and of tables beside dense layers."""

import re
from collections.abc import Hashable

import optax

from neuron_optax.boxes import is_box, rebox, unbox
from neuron_optax.rows.growth import growth
from neuron_optax.rows.ids import rows_by_path, rows_of
from neuron_optax.rows.states import RowState
from neuron_optax.rows.tables import check_slots, clear
from neuron_optax.trees import map_named, named_leaves


def row_chain(
    *transformations: optax.GradientTransformation,
) -> optax.GradientTransformationExtraArgs:
    """Chain transformations of touched rows; refuse those with state of another kind.

    Like ``optax.chain``, for the gradients of the rows of `take_rows`. What keeps no
    numbers of the tables goes anywhere in it (clipping, scaling, decay, schedules), and
    what is row-aware: `lazy_rows` and the strategies made of it. Optax's own momentum
    or Adam would take one batch's third row for the next one's third.

    Slots without a row have gradients of zero, which sums and norms over a leaf do not
    see; means (``optax.clip_by_block_rms``) and noise do. What holds gradients or
    params of its own (``optax.MultiSteps``, ``optax.lookahead``) does not fit around a
    chain either.

    Args:
      transformations: applied one after the other.

    Returns:
      A transformation with the state of ``optax.chain``. Gradients of slots without a
      row count as zero.

    Raises:
      ValueError: at ``init``, naming the leaf, for a state outside of a `RowState`
        whose shape is made of a table's; at ``update``, as `lazy_rows`.

    Example:
      >>> import jax.numpy as jnp
      >>> from neuron_optax import row_adagrad
      >>> optimizer = row_chain(optax.clip_by_global_norm(1.0), row_adagrad(0.1))
      >>> state = optimizer.init(jnp.zeros((1000, 16)))
      >>> row_chain(optax.trace(0.9), row_adagrad(0.1)).init(jnp.zeros((1000, 16)))
      Traceback (most recent call last):
      ...
      ValueError: 0/trace has the shape (1000, 16), made of a table's, and is not \
row-aware; lazy_rows makes moments of gradients so
    """
    chained = optax.chain(*transformations)

    def init(params):
        state = chained.init(params)
        for leaf in growth(chained.init, params, state, RowState):
            if leaf.grows:
                raise ValueError(
                    f"{leaf.path} has the shape {leaf.shape}, made of a table's, and "
                    "is not row-aware; lazy_rows makes moments of gradients so"
                )
        return state

    def update(updates, state, params=None, *, row_ids=None, **extra_args):
        rows = rows_by_path(row_ids)
        check_slots(unbox(updates), rows)
        check_slots(unbox(params), rows, "params")
        clean = map_named(
            lambda path, leaf: clear(leaf, rows_of(rows, path)), unbox(updates)
        )
        clean = rebox(clean, updates)
        return chained.update(clean, state, params, row_ids=row_ids, **extra_args)

    return optax.GradientTransformationExtraArgs(init, update)


def partition_rows(
    of_rows: optax.GradientTransformation,
    of_rest: optax.GradientTransformation,
    tables: str,
) -> optax.GradientTransformationExtraArgs:
    """Give tables one transformation, of rows, and all other leaves another.

    Args:
      of_rows: for the tables; it stands in a `row_chain`.
      of_rest: for the other leaves; any Optax optimizer.
      tables: regular expression searched in the path of a leaf.

    Returns:
      One optimizer for the whole model, an ``optax.partition``. For tables that need
      different ones write that yourself, each of them in a `row_chain`.

    Raises:
      ValueError: for what is no regular expression; at ``init``, if it names no leaf,
        or as `row_chain`.

    Example:
      >>> import jax.numpy as jnp
      >>> from neuron_optax import row_adagrad
      >>> optimizer = partition_rows(row_adagrad(0.1), optax.adam(1e-3), "embedding$")
      >>> params = {"user": {"embedding": jnp.zeros((9, 2))}, "bias": jnp.zeros(2)}
      >>> state = optimizer.init(params)
    """
    try:
        named = re.compile(tables)
    except (re.error, TypeError) as error:
        raise ValueError(
            f"tables must be a regular expression, got {tables!r}"
        ) from error

    def labels(params):
        label = lambda path, _: "rows" if named.search(path) else "dense"
        return map_named(label, params, is_leaf=is_box)

    both: dict[Hashable, optax.GradientTransformation] = {
        "rows": row_chain(of_rows),
        "dense": of_rest,
    }
    split = optax.partition(both, labels)

    def init(params):
        paths = [path for path, _ in named_leaves(params, is_leaf=is_box)]
        if paths and not any(map(named.search, paths)):
            raise ValueError(f"tables={tables!r} must be in a path, got {paths}")
        return split.init(params)

    def update(updates, state, params=None, *, row_ids=None, **extra_args):
        if other := [path for path in rows_by_path(row_ids) if not named.search(path)]:
            raise ValueError(f"tables={tables!r} must be in {other}, which have Rows")
        return split.update(updates, state, params, row_ids=row_ids, **extra_args)

    return optax.GradientTransformationExtraArgs(init, update)
