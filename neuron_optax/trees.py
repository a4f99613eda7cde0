"""Names, boxes and dtypes of the leaves of a tree; every other file may use them.

A path is the names from the root of a tree to a leaf, joined by '/':
``"Dense_0/kernel"``; a dot in a name is a '/', too. A box is a pytree node around one
array that carries metadata.
"""

from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import optax


def is_box(node: Any) -> bool:
    """Whether ``node`` is a Flax box: an nnx Variable or linen metadata."""
    return hasattr(node, "get_metadata") or hasattr(node, "replace_boxed")


def is_masked(node: Any) -> bool:
    """Whether ``node`` stands where ``optax.masked`` or ``partition`` took a leaf."""
    return isinstance(node, optax.MaskedNode)


def unbox(tree: Any) -> Any:
    """Return ``tree`` with the arrays themselves in place of the boxes around them."""

    def content(node):
        leaves = jax.tree.leaves(node, is_leaf=is_masked)
        return leaves[0] if len(leaves) == 1 else node

    return jax.tree.map(content, tree, is_leaf=is_box)


def rebox(plain: Any, like: Any) -> Any:
    """Return the arrays of ``plain`` in the boxes of ``like``."""
    return jax.tree.unflatten(jax.tree.structure(like), jax.tree.leaves(plain))


def cast_like(tree: Any, like: Any) -> Any:
    """Return ``tree`` in the dtypes of ``like``."""
    return jax.tree.map(lambda x, y: jnp.asarray(x, jnp.result_type(y)), tree, like)


def named_leaves(
    tree: Any, is_leaf: Callable[[Any], bool] | None = None
) -> Iterator[tuple[str, Any]]:
    """Yield the path and value of every leaf."""
    for keys, leaf in jax.tree_util.tree_leaves_with_path(tree, is_leaf=is_leaf):
        yield _path(keys), leaf


def map_named(function: Callable[..., Any], tree: Any, *rest: Any) -> Any:
    """Map ``function(path, leaf, *leaves of rest)`` over ``tree``."""
    return jax.tree_util.tree_map_with_path(
        lambda keys, *leaves: function(_path(keys), *leaves), tree, *rest
    )


def _path(keys: tuple[Any, ...]) -> str:
    return jax.tree_util.keystr(keys, simple=True, separator="/").replace(".", "/")
