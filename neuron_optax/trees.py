"""Names, dtypes and checks of the leaves of a tree; every other file may use them.

A path is the names from the root of a tree to a leaf, joined by '/':
``"Dense_0/kernel"``; a dot in a name is a '/', too.
"""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

PART = r"(/(real|imaginary))?$"  # what split_real_and_imaginary adds to a path


def is_masked(node: Any) -> bool:
    """Whether ``node`` stands where ``optax.masked`` or ``partition`` took a leaf."""
    return isinstance(node, optax.MaskedNode)


def cast_like(tree: Any, like: Any) -> Any:
    """Return ``tree`` in the dtypes of ``like``."""
    return jax.tree.map(lambda x, y: jnp.asarray(x, jnp.result_type(y)), tree, like)


def named_leaves(
    tree: Any, is_leaf: Callable[[Any], bool] | None = None
) -> Iterator[tuple[str, Any]]:
    """Yield the path and value of every leaf."""
    for keys, leaf in jax.tree_util.tree_leaves_with_path(tree, is_leaf=is_leaf):
        yield _path(keys), leaf


def map_named(
    function: Callable[..., Any],
    tree: Any,
    *rest: Any,
    is_leaf: Callable[[Any], bool] | None = None,
) -> Any:
    """Map ``function(path, leaf, *leaves of rest)`` over ``tree``."""
    return jax.tree_util.tree_map_with_path(
        lambda keys, *leaves: function(_path(keys), *leaves),
        tree,
        *rest,
        is_leaf=is_leaf,
    )


def check_dtypes(params: Any) -> None:
    """Refuse leaves that are neither floating nor complex."""
    for path, leaf in named_leaves(params):
        if callable(leaf):
            raise TypeError(
                f"{path}: params must be float or complex, got {type(leaf).__name__}; "
                "of an Equinox model give what equinox.is_inexact_array filters"
            )
        dtype = jnp.result_type(leaf)
        if not jnp.issubdtype(dtype, jnp.inexact):
            raise TypeError(f"{path}: params must be float or complex, got {dtype}")


def check_leaves(updates: Any, state: Any, params: Any) -> None:
    """Refuse updates with other leaves than the state, or other shapes than params."""
    came, wanted = dict(named_leaves(updates)), dict(named_leaves(state))
    if came.keys() != wanted.keys():
        raise ValueError(
            "updates must have the leaves the state was made for: missing "
            f"{sorted(wanted.keys() - came.keys())}, "
            f"unexpected {sorted(came.keys() - wanted.keys())}"
        )
    for path, weight in named_leaves(params):
        if path in came and np.shape(came[path]) != np.shape(weight):
            raise ValueError(
                f"{path}: update must have the shape {np.shape(weight)} of its "
                f"parameter, got {np.shape(came[path])}"
            )


def check_same_shapes(new: Any, old: Any, holder: str) -> None:
    """Refuse a tree whose leaves have other shapes than those of ``old``."""
    wanted = dict(named_leaves(old))
    for path, leaf in named_leaves(new):
        if path in wanted and np.shape(leaf) != np.shape(wanted[path]):
            raise ValueError(
                f"{holder} {path} has the shape {np.shape(wanted[path])}, but must "
                f"have {np.shape(leaf)}: was it made for other params?"
            )


def move(
    inner: optax.GradientTransformationExtraArgs,
    updates: Any,
    state: Any,
    params: Any,
    extra_args: Mapping[str, Any],
) -> tuple[Any, Any]:
    """Move the direction; a state made for other shapes is refused by its leaf."""
    holder = "the state of the direction"
    try:
        moved, new = inner.update(updates, state, params, **extra_args)
    except (TypeError, ValueError):
        like = updates if params is None else params
        check_same_shapes(jax.eval_shape(inner.init, like), state, holder)
        raise
    check_same_shapes(new, state, holder)
    check_same_shapes(updates, moved, "the direction of")
    return moved, new


def _path(keys: tuple[Any, ...]) -> str:
    return jax.tree_util.keystr(keys, simple=True, separator="/").replace(".", "/")
