"""States of our classes, found wherever they stand in what holds them.

A state restored from a checkpoint may be mappings with the names of its fields, without
those that were empty.
"""

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import jax

from neuron_optax.boxes import unbox
from neuron_optax.trees import named_leaves


class Place(NamedTuple):
    """Where a node of a state stands.

    Attributes:
      injected: the learning rate that ``optax.inject_hyperparams`` has around it.
      parts: labels of ``optax.partition`` that it is under.
    """

    injected: Any = None
    parts: tuple[Any, ...] = ()


NOWHERE = Place()


def walk(node: Any, place: Place = NOWHERE) -> Iterator[tuple[Any, Place]]:
    """Yield the nodes of a state and where they stand."""
    own = injected_rate(node)
    place = place if own is None else place._replace(injected=own)
    yield node, place
    labelled = _field(node, "inner_states")
    if isinstance(labelled, Mapping):
        for label, part in labelled.items():
            yield from walk(part, place._replace(parts=(*place.parts, label)))
    elif not jax.tree_util.all_leaves([node]):
        for child in jax.tree.leaves(node, is_leaf=lambda part: part is not node):
            yield from walk(child, place)


def injected_rate(node: Any) -> Any:
    """Return the learning rate that ``optax.inject_hyperparams`` keeps in a node."""
    hyperparams = _field(node, "hyperparams")
    if isinstance(hyperparams, Mapping) and "learning_rate" in hyperparams:
        return jax.tree.leaves(hyperparams["learning_rate"])[0]
    return None


def _field(node, name):
    if isinstance(node, Mapping):
        return node.get(name)
    return getattr(node, name, None) if hasattr(node, "_fields") else None


def as_state(kind: Any, node: Any) -> Any:
    """Return a node as a state of this class, also what is left of one as a mapping."""
    if isinstance(node, kind):
        return node
    fields = kind._fields
    if isinstance(node, Mapping) and {fields[0]} <= set(node) <= set(fields):
        return kind(**(dict.fromkeys(fields, ()) | dict(node)))
    return None


def leaves_of(state: Any, kind: Any, field: str) -> Iterator[tuple[str, Any]]:
    """Yield the arrays of a field of all such states, by path of their parameter."""
    for node, _ in walk(state):
        of = as_state(kind, node)
        if of is not None:
            yield from named_leaves(unbox(getattr(of, field)))
