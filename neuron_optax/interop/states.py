"""Optimizer states between torch and JAX, so that a run goes on in the other."""

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np
import torch

from neuron_optax.boxes import rebox, unbox
from neuron_optax.interop.leaves import named_arrays, with_arrays
from neuron_optax.interop.links import Names, find_links
from neuron_optax.interop.modules import tied_to
from neuron_optax.interop.moves import Link
from neuron_optax.interop.optimizers import TOTAL, Entry, entries_of, reduced
from neuron_optax.interop.walks import MEMORY, SECOND, STEP, walk


def state_from_torch(
    optimizer: torch.optim.Optimizer,
    module: torch.nn.Module,
    like: Any,
    params: Any,
    names: Names | None = None,
    *,
    transpose_kernel: bool | None = None,
    keep_memory: bool = False,
) -> Any:
    """Return the state of a torch optimizer as one of Optax or of this library.

    Moments are moved like the parameters they are of; steps are set wherever they are
    counted, also by schedules.

    ===================== =====================================================
    torch                 JAX
    ===================== =====================================================
    ``Adam``, ``AdamW``   ``optax.adam``, ``adamw`` and what is built on them, such
                          as `layerwise`; `weight_norm_adam` and `neuron_lamb` with
                          ``keep_memory``; `adam_mini` under ``PER_ENTRY``
    ``Adagrad``           `neuron_adagrad` under ``PER_ENTRY``
    ``RMSprop``           `neuron_rmsprop` under ``PER_ENTRY``; ``optax.rmsprop``
                          with ``eps_in_sqrt=False``
    ``adam_mini``'s       `adam_mini`, with neurons as the authors cut them
    ===================== =====================================================

    Args:
      optimizer: of torch.
      module: whose parameters it has.
      like: state to fill, ``init(params)`` of the optimizer of JAX; of what holds one,
        ``.opt_state`` (``TrainState``, ``nnx.Optimizer``) or ``.inner_opt_state`` (that
        of ``optax.MultiSteps``).
      params: the tree given to ``init``, without statistics; may be abstract.
      names: as of `params_from_torch`.
      transpose_kernel: as of `params_from_torch`.
      keep_memory: leave what a `NeuronState` remembers beside Optax's own moments as it
        is in ``like``. That is right where every step measures it anew, as
        `weight_norm_adam` and `neuron_lamb` do; `frequency_adam` would count from zero.

    Returns:
      A state like ``like``. The factors last applied (``rate``), which no update reads,
      are those of ``like``.

    Raises:
      TypeError: for another optimizer of torch.
      ValueError: as `params_from_torch`; naming what does not carry over: options
        (``amsgrad``, ``centered``, ``lr_decay``, ``maximize``, ``momentum``), steps
        that differ between parameters, merged biases of LSTM and GRU, parameters with a
        state on one side only, moments of other neurons, and states that torch has
        nothing like.

    Note:
      Learning rates, decays and epsilons are the caller's to repeat. Blocks of neurons
      that have no axis of their own (``Neurons.blocks``) are refused.

      A state does not tell its whole formula. Of the optimizers here and in Optax that
      have the structure wanted, these go on with the same moments: after Adam
      `adam_mini` and `slim_adam` (``PER_ENTRY``), ``adam``, ``adamw``, ``lamb``,
      ``nadam``, ``nadamw``, ``radam``; after Adagrad `neuron_adagrad` and
      `rowwise_adagrad`, after RMSprop `neuron_rmsprop` (``PER_ENTRY``), ``rmsprop``.
      These are not told apart from them, but their numbers mean something else: after
      Adam `subset_norm_adam`, ``adamax``, ``adamaxw``, ``yogi``, ``adopt``; after
      Adagrad `neuron_rmsprop`, `frequency_sgd`; after RMSprop `neuron_adagrad`,
      `rowwise_adagrad`, `frequency_sgd`.

    Example:
      >>> import jax.numpy as jnp, optax
      >>> linear = torch.nn.Linear(3, 2)
      >>> adam = torch.optim.Adam(linear.parameters())
      >>> linear(torch.ones(3)).sum().backward()
      >>> adam.step()
      >>> params = {"kernel": jnp.zeros((3, 2)), "bias": jnp.zeros(2)}
      >>> state = optax.adam(1e-3).init(params)
      >>> state = state_from_torch(adam, linear, state, params)
      >>> int(state[0].count), state[0].mu["kernel"].shape
      (1, (3, 2))
    """
    entries = entries_of(optimizer, module)
    links = _links(module, params, names, transpose_kernel)
    _, found = _found(like, entries, keep_memory)
    entries = _trained(entries, found, links)
    step = _step(entries)
    _check(found, links, entries)
    moments = {r: {e.name: e.moment(r) for e in entries} for r in entries[0].keys}

    def visit(role, path, value):
        if role == STEP:
            return jnp.asarray(step, value.dtype)
        of, new = moments[_role(role, entries, path)], {}
        for name, leaf in named_arrays(value).items():
            new[name] = reduced(links[name].gather(of), tuple(leaf.shape), name)
        return with_arrays(value, new)

    return rebox(walk(unbox(like), visit, keep_memory), like)


def state_to_torch(
    state: Any,
    optimizer: torch.optim.Optimizer,
    module: torch.nn.Module,
    params: Any,
    names: Names | None = None,
    *,
    transpose_kernel: bool | None = None,
    keep_memory: bool = False,
) -> dict[str, Any]:
    """Return a state of Optax or of this library as the ``state_dict`` of torch's.

    Args:
      state: as `state_from_torch` returns it.
      optimizer: of torch, whose ``state_dict`` is wanted. It is not changed; options
        such as its learning rate are its own. Adam-mini's must have taken a step, which
        says how it cuts its parameters.
      module: whose parameters it has.
      params: the tree of which the state is, without statistics; may be abstract.
      names: as of `params_from_torch`.
      transpose_kernel: as of `params_from_torch`.
      keep_memory: as of `state_from_torch`; torch gets none of what is remembered.

    Returns:
      What ``optimizer.load_state_dict`` takes. Where nothing in the state counts steps,
      as in that of ``optax.rmsprop``, they are the optimizer's own.

    Raises:
      TypeError: for another optimizer of torch.
      ValueError: as `state_from_torch`; where steps are counted differently.

    Example:
      >>> import jax.numpy as jnp, optax
      >>> linear = torch.nn.Linear(3, 2)
      >>> params = {"kernel": jnp.ones((3, 2)), "bias": jnp.ones(2)}
      >>> adam = optax.adam(1e-3)
      >>> _, state = adam.update(params, adam.init(params))
      >>> theirs = torch.optim.Adam(linear.parameters())
      >>> theirs.load_state_dict(state_to_torch(state, theirs, linear, params))
      >>> theirs.state[linear.weight]["exp_avg"].shape
      torch.Size([2, 3])
    """
    entries = entries_of(optimizer, module)
    links = _links(module, params, names, transpose_kernel)
    steps, found = _found(state, entries, keep_memory)
    entries = _trained(entries, found, links)
    counts = {int(step) for step in steps}
    if len(counts) > 1:
        raise ValueError(f"torch counts steps once, but the state counts {counts}")
    step = next(iter(counts), None)
    _check(found, links, entries)
    moments = {entry.name: _moments(entry, found, links) for entry in entries}
    whole = optimizer.state_dict()
    filled = {e.place: e.filled(step, moments[e.name]) for e in entries}
    return whole | {"state": filled}


def _moments(
    entry: Entry, found: Mapping[str, Mapping[str, Any]], links: Mapping[str, Link]
) -> dict[str, np.ndarray]:
    """Return the moments of a parameter in its shape."""
    moments = {}
    for role, leaves in found.items():
        for path, leaf in leaves.items():
            if entry.name in links[path].names:
                full = _whole(path, np.asarray(leaf), links[path].move.target)
                blank = np.zeros(tuple(entry.parameter.shape), full.dtype)
                whole = {entry.name: moments.setdefault(role, blank)}
                links[path].scatter(full, whole)
    return moments


def _whole(path: str, leaf: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Return a moment in the shape of its leaf."""
    if leaf.ndim != len(shape):
        raise ValueError(
            f"{path}: a moment of shape {leaf.shape} must have the axes of {shape}; "
            "those of blocks of neurons are not supported"
        )
    return np.broadcast_to(leaf, shape)


def _links(
    module: torch.nn.Module,
    params: Any,
    names: Names | None,
    transpose_kernel: bool | None,
) -> dict[str, Link]:
    """Return the link of every leaf of the params; tied tensors have one name."""
    tensors = dict(module.named_parameters(remove_duplicate=False))
    found = find_links(module, tensors, named_arrays(params), names, transpose_kernel)
    ties = tied_to(tensors)
    one = lambda parts: tuple((ties.get(name, name), rows) for name, rows in parts)
    return {
        link.path: link._replace(pieces=tuple(map(one, link.pieces)))
        for link in found.links
    }


def _found(
    state: Any, entries: list[Entry], keep_memory: bool
) -> tuple[list[Any], dict[str, dict[str, Any]]]:
    """Return the steps that a state counts, and by role and path its moments."""
    steps, found = [], {role: {} for role in entries[0].keys}

    def visit(role, path, value):
        if role == STEP:
            steps.append(value)
            return value
        leaves, known = named_arrays(value), found[_role(role, entries, path)]
        if twice := sorted(leaves.keys() & known.keys()):
            raise ValueError(f"{path}: the state has a second {role} of {twice}")
        known.update(leaves)
        return value

    walk(unbox(state), visit, keep_memory)
    return steps, found


def _trained(
    entries: list[Entry],
    found: Mapping[str, Mapping[str, Any]],
    links: Mapping[str, Link],
) -> list[Entry]:
    """Return the parameters that have a state on either side."""
    paths = {path for leaves in found.values() for path in leaves} & links.keys()
    held = {name for path in paths for name in links[path].names}
    trained = [entry for entry in entries if entry.state or entry.name in held]
    if not trained:
        raise ValueError("no parameter has a state, neither in torch nor in JAX")
    return trained


def _role(role: str, entries: list[Entry], path: str) -> str:
    """Return which of torch's moments is meant."""
    keys = entries[0].keys
    if role == MEMORY:
        return TOTAL if TOTAL in keys else SECOND
    if role not in keys:
        raise ValueError(f"{path}: torch has no {role}, but {list(keys)}")
    return role


def _step(entries: list[Entry]) -> int:
    """Return the number of steps taken, which must be that of every parameter."""
    if new := [entry.name for entry in entries if "step" not in entry.state]:
        raise ValueError(f"parameters that have not taken a step: {new}")
    steps = {entry.name: int(entry.state["step"]) for entry in entries}
    if len(set(steps.values())) > 1:
        raise ValueError(f"parameters must have taken as many steps, got {steps}")
    return next(iter(steps.values()))


def _check(
    found: Mapping[str, Mapping[str, Any]],
    links: Mapping[str, Link],
    entries: list[Entry],
) -> None:
    """Refuse moments that only one side has, or has of other neurons."""
    for role, leaves in found.items():
        if unknown := sorted(leaves.keys() - links.keys()):
            raise ValueError(f"the state has a {role} of no param: {unknown}")
        theirs = {entry.name: entry.numbers(role) for entry in entries}
        ours = dict.fromkeys(theirs, 0)
        for path, leaf in leaves.items():
            (name, *more), size = links[path].names, int(leaf.size)
            if more:
                raise ValueError(
                    f"{path}: moments of {[name, *more]} do not add up to those of the "
                    "one bias that they are in JAX"
                )
            ours[name] = ours.get(name, 0) + size
        differ = {
            n: (theirs.get(n, 0), ours[n]) for n in ours if theirs.get(n) != ours[n]
        }
        if differ:
            raise ValueError(
                f"numbers of the {role}, torch's and the state's: {differ}; masked, "
                "tied or frozen parameters, or other neurons"
            )
