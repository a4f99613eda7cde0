"""Where optimizer states of JAX keep moments and steps."""

from collections.abc import Callable
from typing import Any

import jax
import optax

from neuron_optax.core import NeuronState
from neuron_optax.trees import map_named

STEP, FIRST, SECOND = "step", "mean of gradients", "mean of squares"
MEMORY = "memory"  # a mean or a sum of squares: a `NeuronState` does not tell which
KEPT, INNER = "kept", "inner"
ROLES = {
    NeuronState: {"step": STEP, "memory": MEMORY, "rate": KEPT, "direction": INNER},
    optax.ScaleByAdamState: {"count": STEP, "mu": FIRST, "nu": SECOND},
    optax.EmaState: {"count": STEP, "ema": FIRST},
    optax.ScaleByRmsState: {"nu": SECOND},
    optax.InjectStatefulHyperparamsState: {
        "count": STEP,
        "hyperparams": KEPT,
        "hyperparams_states": INNER,
        "inner_state": INNER,
    },
}
OF_OPTAX = optax.ScaleByAdamState, optax.ScaleByRmsState
Visit = Callable[[str, str, Any], Any]


def walk(state: Any, visit: Visit) -> Any:
    """Map ``visit(role, path, value)`` over the steps and moments of a state.

    Where Optax's own state holds the moments, what a `NeuronState` remembers beside it
    is kept: of `scale_by_weight_norm`, for example, the norms last seen.

    Raises:
      ValueError: naming what is neither step nor moment.
    """
    nodes = jax.tree.leaves(state, is_leaf=lambda node: isinstance(node, OF_OPTAX))
    memory = KEPT if any(isinstance(node, OF_OPTAX) for node in nodes) else MEMORY
    roles = ROLES | {NeuronState: ROLES[NeuronState] | {"memory": memory}}

    def inside(role, path, value):
        if role == INNER:
            return below(path, value)
        return value if role == KEPT else visit(role, path, value)

    def field(path, node, name):
        return inside(roles[type(node)][name], _join(path, name), getattr(node, name))

    def below(lead, tree):
        def at(path, node):
            path = _join(lead, path)
            if type(node) in roles:
                new = {name: field(path, node, name) for name in roles[type(node)]}
                return node._replace(**new)
            if path.rpartition("/")[2] == "count":
                return visit(STEP, path, node)
            raise ValueError(f"{path}: not known in the state of an optimizer of torch")

        return map_named(at, tree, is_leaf=lambda node: type(node) in roles)

    return below("", state)


def _join(*path: str) -> str:
    return "/".join(filter(None, path))
