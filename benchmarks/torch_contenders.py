"""Optimizers in PyTorch: its own in every implementation, and the authors' packages."""

import contextlib
import importlib
import importlib.util
import io
import re
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from benchmarks.timing import Runner
from benchmarks.workloads import draw
from neuron_optax import FLAX
from neuron_optax.projections import is_matrix
from neuron_optax.projections.matrices import matrix_shape
from neuron_optax.strategies.alias import AUXILIARY
from neuron_optax.trees import map_named, named_leaves

RATE = 1e-3
KINDS = {"fused": {"fused": True}, "foreach": {"foreach": True}, "for-loop": {}}
TORCH = {
    f"torch.{name} {kind}": (name, {"foreach": False, **options})
    for name in ("Adam", "Adagrad", "RMSprop")
    for kind, options in KINDS.items()
    if (name, kind) != ("RMSprop", "fused")  # there is none
}
AUTHORS = {  # name of the contender: its package
    "adam-mini": "adam_mini",
    "pytorch_optimizer Nero": "pytorch_optimizer",
    "pytorch_optimizer NorMuon": "pytorch_optimizer",
}
BASELINES = {
    **{name: f"optax.{name.split()[0][6:].lower()}" for name in TORCH},
    "adam-mini": "optax.adam",
    "pytorch_optimizer Nero": "optax.fromage",
    "pytorch_optimizer NorMuon": "optax.muon",
}


def missing(name: str) -> str | None:
    """Return what keeps a contender from taking part."""
    for package in ("torch", AUTHORS.get(name, "torch")):
        if importlib.util.find_spec(package) is None:
            return f"{package} is not installed"
    if jax.default_backend() != "cpu" and not _torch().cuda.is_available():
        return "this torch has no accelerator"
    return None


def eager(name: str, shapes: Any) -> Runner:
    """Make torch's parameters with their gradients, and the optimizer's step."""
    torch = _torch()
    device = "cpu" if jax.default_backend() == "cpu" else "cuda"

    def tensor(leaf):
        dtype = getattr(torch, leaf.dtype.name)
        return torch.tensor(np.asarray(leaf, np.float32), dtype=dtype, device=device)

    params, grads = (jax.tree.map(tensor, draw(shapes, seed)) for seed in (1, 0))
    if "NorMuon" in name:  # takes the first axis for the rows of a matrix
        params, grads = (map_named(_rows(shapes), tree) for tree in (params, grads))
    leaves = {path: torch.nn.Parameter(param) for path, param in named_leaves(params)}
    for path, grad in named_leaves(grads):
        leaves[path].grad = grad
    optimizer = _optimizer(name, leaves)

    def run():
        optimizer.step()
        if device == "cuda":
            torch.cuda.synchronize()

    run()  # the state is made in the first step
    kept = [v for state in optimizer.state.values() for v in state.values()]
    size = sum(v.nbytes for v in kept if isinstance(v, torch.Tensor))
    return Runner(run, size)


def _rows(shapes):
    """Return a function of a path and a leaf, which makes matrices of its matrices."""
    axes = FLAX.resolve(shapes)

    def rows(path, leaf):
        of = axes[path]
        return leaf.reshape(matrix_shape(of)) if is_matrix(of) else leaf

    return rows


def _torch() -> Any:
    return importlib.import_module("torch")


def _optimizer(name: str, leaves: dict[str, Any]) -> Any:
    if name in TORCH:
        kind, options = TORCH[name]
        return getattr(_torch().optim, kind)(leaves.values(), lr=RATE, **options)
    package = importlib.import_module(AUTHORS[name])
    with contextlib.redirect_stdout(io.StringIO()):  # what it finds in a model
        return _of_authors[name](package, leaves)


def _adam_mini(package, leaves):
    named = {f"{path}.mlp.weight": leaf for path, leaf in leaves.items()}
    width = next(iter(leaves.values())).shape[-1]
    return package.Adam_mini(named.items(), RATE, dim=width, n_heads=1, verbose=False)


def _normuon(package, leaves):
    groups = {True: [], False: []}  # embeddings and the head are not for it
    for path, leaf in leaves.items():
        groups[leaf.dim() > 1 and not re.search(AUXILIARY, path)].append(leaf)
    said = [{"params": of, "use_muon": use} for use, of in groups.items() if of]
    return package.NorMuon(said, lr=RATE)


_of_authors: dict[str, Callable[[Any, dict[str, Any]], Any]] = {
    "adam-mini": _adam_mini,
    "pytorch_optimizer Nero": lambda package, leaves: package.Nero(
        leaves.values(), lr=RATE
    ),
    "pytorch_optimizer NorMuon": _normuon,
}
