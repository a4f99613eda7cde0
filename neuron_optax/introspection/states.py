"""States of our classes, found wherever they stand in what holds them.

A state restored from a checkpoint may be mappings with the names of its fields, without
those that were empty.
"""

import functools
from collections.abc import Iterator, Mapping
from typing import Any

import jax

from neuron_optax.boxes import unbox
from neuron_optax.trees import named_leaves


def walk(node: Any, injected: Any = None) -> Iterator[tuple[Any, Any]]:
    """Yield the nodes of a state, each with the learning rate injected around it."""
    own = injected_rate(node)
    injected = injected if own is None else own
    yield node, injected
    if not jax.tree_util.all_leaves([node]):
        for child in jax.tree.leaves(node, is_leaf=lambda part: part is not node):
            yield from walk(child, injected)


def injected_rate(node: Any) -> Any:
    """Return the learning rate that ``optax.inject_hyperparams`` keeps in a node."""
    keeps = node.get if isinstance(node, Mapping) else functools.partial(_field, node)
    hyperparams = keeps("hyperparams")
    if isinstance(hyperparams, Mapping) and "learning_rate" in hyperparams:
        return jax.tree.leaves(hyperparams["learning_rate"])[0]
    return None


def _field(node, name):
    return getattr(node, name, None) if hasattr(node, "_fields") else None


def as_state(kind: Any, node: Any) -> Any:
    """Return a node as a state of this class, also what is left of one as a mapping."""
    if isinstance(node, kind):
        return node
    fields = kind._fields
    if isinstance(node, Mapping) and {fields[0]} <= set(node) <= set(fields):
        return kind(**(dict.fromkeys(fields, ()) | dict(node)))
    return None


def leaves_of(state: Any, kind: type, field: str) -> dict[str, Any]:
    """Return the arrays of a field by the path of their parameter; the first counts."""
    found = [as_state(kind, node) for node, _ in walk(state)]
    trees = [unbox(getattr(of, field)) for of in found if of is not None]
    return {path: leaf for tree in reversed(trees) for path, leaf in named_leaves(tree)}
