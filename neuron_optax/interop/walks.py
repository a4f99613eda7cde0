"""Where optimizer states of JAX keep moments and steps."""

from collections.abc import Callable
from typing import Any

import jax
import optax

from neuron_optax.core import NeuronState
from neuron_optax.interop.leaves import named_arrays
from neuron_optax.trees import map_named

STEP, FIRST, SECOND = "step", "mean of gradients", "mean of squares"
MEMORY = "memory"  # a mean or a sum of squares: a `NeuronState` does not tell which
KEPT, INNER = "kept", "inner"
OF_OPTAX = optax.ScaleByAdamState, optax.ScaleByRmsState
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
BESIDE_ADAM = set(ROLES) - {optax.EmaState}
BESIDE_MEMORY = {optax.EmaState}  # the momentum of `adam_mini`
HOLDERS = "opt_state", "inner_opt_state"  # of TrainState and nnx.Optimizer, MultiSteps
Visit = Callable[[str, str, Any], Any]


def walk(state: Any, visit: Visit, keep_memory: bool) -> Any:
    """Map ``visit(role, path, value)`` over the steps and moments of a state.

    What a `NeuronState` remembers is a moment, unless Optax's own state has those of
    the same parameters: then it stays, if ``keep_memory``.

    Raises:
      ValueError: naming what is neither step nor moment.
    """
    if holder := next((name for name in HOLDERS if hasattr(state, name)), None):
        kind = type(state).__name__
        raise ValueError(f"{kind} is not an optimizer's state: give its .{holder}")
    nodes = jax.tree.leaves(state, is_leaf=lambda node: isinstance(node, OF_OPTAX))
    with_moments = {
        path
        for node in nodes
        if isinstance(node, OF_OPTAX)
        for path in named_arrays(node.nu)
    }

    def inside(role, path, value, known):
        if role == INNER:
            return below(path, value, known)
        return value if role == KEPT else visit(role, path, value)

    def whole(path, node, known):
        roles = ROLES[type(node)]
        if isinstance(node, NeuronState):
            roles, known = _of_neurons(path, node, with_moments, keep_memory)
        new = {
            name: inside(role, _join(path, name), getattr(node, name), known)
            for name, role in roles.items()
        }
        return node._replace(**new)

    def below(lead, tree, known):
        def at(path, node):
            path = _join(lead, path)
            if type(node) in known:
                return whole(path, node, known)
            if path.rpartition("/")[2] == "count":
                return visit(STEP, path, node)
            raise ValueError(f"{path}: not known in the state of an optimizer of torch")

        return map_named(at, tree, is_leaf=lambda node: type(node) in known)

    return below("", state, BESIDE_ADAM)


def _of_neurons(
    path: str, node: NeuronState, with_moments: set[str], keep_memory: bool
) -> tuple[dict[str, str], set[type]]:
    """Return the roles of a `NeuronState` and what is known in its direction.

    Raises:
      ValueError: for what it remembers beside moments of Optax.
    """
    roles, remembered = ROLES[NeuronState], named_arrays(node.memory).keys()
    if not remembered:
        return roles | {"memory": KEPT}, BESIDE_ADAM | BESIDE_MEMORY
    if not remembered & with_moments:
        return roles, BESIDE_MEMORY
    if not keep_memory:
        raise ValueError(
            f"{_join(path, 'memory')}: torch has nothing like what is remembered here "
            "beside Optax's moments; keep_memory=True leaves it as it is, which is "
            "right for what every step measures anew (weight_norm_adam, neuron_lamb)"
        )
    return roles | {"memory": KEPT}, BESIDE_ADAM


def _join(*path: str) -> str:
    return "/".join(filter(None, path))
