"""Boxes of Flax: pytree nodes around one array that carry its sharding by name.

They are told by their attributes, those of an nnx Variable or of linen's Partitioned.
"""

from collections.abc import Callable
from typing import Any

import jax
from jax.experimental.layout import Format
from jax.sharding import NamedSharding, PartitionSpec, Sharding

from neuron_optax.trees import is_masked, map_named

Names = Callable[[tuple[Any, ...]], tuple[Any, ...]]


def is_box(node: Any) -> bool:
    """Whether ``node`` is a Flax box: an nnx Variable or linen metadata."""
    variable = hasattr(node, "get_metadata") and hasattr(node, "get_raw_value")
    return variable or hasattr(node, "replace_boxed")


def unbox(tree: Any) -> Any:
    """Return ``tree`` with the arrays themselves in place of the boxes around them."""

    def content(node):
        leaves = jax.tree.leaves(node, is_leaf=is_masked)
        return leaves[0] if len(leaves) == 1 else node

    return jax.tree.map(content, tree, is_leaf=is_box)


def rebox(plain: Any, like: Any) -> Any:
    """Return the arrays of ``plain`` in the boxes of ``like``."""
    return jax.tree.unflatten(jax.tree.structure(like), jax.tree.leaves(plain))


def box_numbers(numbers: Any, params: Any, names: Callable[[str], Names]) -> Any:
    """Return numbers per neuron in boxes like those of ``params``.

    Args:
      numbers: tree of arrays without boxes.
      params: tree of arrays, some in boxes.
      names: ``names(path)(names)``, the names of the axes of a leaf's numbers, given
        those of the leaf.
    """

    def boxed(path, param, number):
        if not is_box(param) or not jax.tree.leaves(param):
            return number
        return _replaced(param, number, names(path))

    return map_named(boxed, params, numbers, is_leaf=is_box)


def _replaced(box: Any, value: Any, names: Names) -> Any:
    if hasattr(box, "get_metadata"):
        keys = "out_sharding", "optimizer_sharding"
        said = {key: box.get_metadata(key, None) for key in keys}
        adapted = {key: _renamed(names, of) for key, of in said.items() if of}
        return box.replace(value, **adapted)
    if hasattr(box, "names"):
        return box.replace(value=value, names=_renamed(names, box.names))
    return box.replace_boxed(value)


def _renamed(names: Names, sharding: Any) -> Any:
    """Apply ``names`` to a tuple, a PartitionSpec, a NamedSharding or a Format."""
    if isinstance(sharding, NamedSharding):
        spec = _renamed(names, sharding.spec)
        return NamedSharding(sharding.mesh, spec, memory_kind=sharding.memory_kind)
    if isinstance(sharding, PartitionSpec):
        return PartitionSpec(*names(tuple(sharding)))
    if isinstance(sharding, Format):
        return _renamed(names, sharding.sharding)
    if isinstance(sharding, Sharding):  # on one device
        return sharding
    return names((sharding,) if isinstance(sharding, str) else tuple(sharding))
