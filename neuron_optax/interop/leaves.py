"""JAX's side: the arrays of a tree by path, whatever library the tree is of.

Flax's collections ``params`` and ``batch_stats`` are no part of a path. An Equinox
model may come with its state, as a pair; averages of its batch normalisation are then
leaves ``mean`` and ``var`` beside its weight.
"""

from collections.abc import Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from neuron_optax.boxes import rebox, unbox
from neuron_optax.trees import map_named, named_leaves

COLLECTIONS = ("params", "batch_stats")
COUNTED = 2**30  # steps after which Equinox no longer corrects its averages for bias


def named_arrays(tree: Any) -> dict[str, Any]:
    """Return the arrays of a tree, abstract ones too, by path.

    Raises:
      ValueError: for two leaves of one path, a collection of linen that torch has not,
        or a state of Equinox that is not of batch normalisation.
    """
    if _is_pair(tree):
        model, state = tree
        averages = {
            f"{path}{name}": leaf
            for path, index, _ in _batch_norms(model)
            for name, leaf in zip(("mean", "var"), state.get(index), strict=True)
        }
        return named_arrays(model) | averages
    arrays, collections = {}, _has_collections(tree)
    for path, leaf in named_leaves(unbox(tree)):
        if hasattr(leaf, "shape") and hasattr(leaf, "dtype"):
            if collections and path.partition("/")[0] not in COLLECTIONS:
                raise ValueError(f"{path}: collections must be among {COLLECTIONS}")
            name = _short(tree, path)
            if name in arrays:
                raise ValueError(f"{name}: two leaves have this path")
            arrays[name] = leaf
    return arrays


def with_arrays(tree: Any, arrays: Mapping[str, Any]) -> Any:
    """Return a tree with other arrays, cast to its dtypes.

    Raises:
      ValueError: naming the leaf of integers that floats are for.
    """
    if _is_pair(tree):
        model, state = tree
        return with_arrays(model, arrays), _with_averages(model, state, arrays)

    def replaced(path, leaf):
        new = arrays.get(_short(tree, path)) if hasattr(leaf, "shape") else None
        if new is None:
            return leaf
        check_kinds(path, new.dtype, leaf.dtype)
        return jnp.asarray(new, leaf.dtype)

    return rebox(map_named(replaced, unbox(tree)), tree)


def check_kinds(name: str, came: Any, wanted: Any) -> None:
    """Refuse floats for an array of integers.

    Raises:
      ValueError: naming the array.
    """
    inexact = lambda dtype: jnp.issubdtype(dtype, jnp.inexact)
    if inexact(came) and not inexact(wanted):
        raise ValueError(f"{name}: {came} does not go into {wanted}")


def check_averages(tree: Any) -> None:
    """Refuse averages that Equinox has yet to fill or to correct for their bias.

    Raises:
      ValueError: naming the layer.
    """
    if not _is_pair(tree):
        return
    for path, _, flag in _batch_norms(tree[0]):
        said = tree[1].get(flag)
        if said.dtype == bool and bool(said):
            raise ValueError(f"{path}mean: averages that have not seen a batch")
        if said.dtype != bool and int(said) < COUNTED:
            raise ValueError(
                f"{path}mean: averages that Equinox corrects for their bias after "
                f"{said} batches, which torch does not do"
            )


def _short(tree: Any, path: str) -> str:
    """Return a path without the collection, if the tree is one of collections."""
    return path.partition("/")[2] if _has_collections(tree) else path


def _has_collections(tree: Any) -> bool:
    if not isinstance(tree, Mapping) or not tree:
        return False
    return isinstance(tree.get("params"), Mapping) or set(tree) <= set(COLLECTIONS)


def _is_pair(tree: Any) -> bool:
    return isinstance(tree, tuple) and len(tree) == 2 and hasattr(tree[1], "substate")


def _with_averages(model: Any, state: Any, arrays: Mapping[str, Any]) -> Any:
    """Return a state of Equinox with other averages, which it uses as they are."""
    leaves, tree = jax.tree.flatten(state)
    place = jax.tree.unflatten(tree, range(len(leaves)))
    for path, index, flag in _batch_norms(model):
        for name, at in zip(("mean", "var"), place.get(index), strict=True):
            leaves[at] = jnp.asarray(arrays[f"{path}{name}"], leaves[at].dtype)
        at = place.get(flag)
        done = False if leaves[at].dtype == bool else COUNTED
        leaves[at] = jnp.asarray(done, leaves[at].dtype)
    return jax.tree.unflatten(tree, leaves)


def _batch_norms(model: Any) -> Iterator[tuple[str, Any, Any]]:
    """Yield what leads a layer's paths, indices of its averages and of their flag."""
    is_index = lambda node: hasattr(node, "marker") and hasattr(node, "init")
    found = {
        path: node
        for path, node in named_leaves(model, is_leaf=is_index)
        if is_index(node)
    }
    flags = {
        "ema_state_index": "ema_first_time_index",
        "batch_state_index": "batch_counter",
    }
    for path, index in found.items():
        layer, slash, name = path.rpartition("/")
        if name in flags:
            yield layer + slash, index, found[f"{layer}{slash}{flags[name]}"]
        elif name not in flags.values():
            raise ValueError(f"{path}: a state of Equinox that torch does not have")
