"""Optimizers in PyTorch: its own in every implementation, and the authors' packages."""

import contextlib
import importlib
import importlib.util
import io
import os
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from benchmarks.timing import Runner
from benchmarks.workloads import draw

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
    # threads that spin while they wait keep the other contenders from running
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
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

    params, grads = (map(tensor, jax.tree.leaves(draw(shapes, n))) for n in (1, 0))
    leaves = [torch.nn.Parameter(param) for param in params]
    for leaf, grad in zip(leaves, grads, strict=True):
        leaf.grad = grad
    optimizer = _optimizer(name, leaves)

    def run():
        optimizer.step()
        if device == "cuda":
            torch.cuda.synchronize()

    run()  # the state is made in the first step
    kept = [v for state in optimizer.state.values() for v in state.values()]
    size = sum(v.nbytes for v in kept if isinstance(v, torch.Tensor))
    return Runner(run, size)


def _torch() -> Any:
    return importlib.import_module("torch")


def _optimizer(name: str, leaves: list[Any]) -> Any:
    if name in TORCH:
        kind, options = TORCH[name]
        return getattr(_torch().optim, kind)(leaves, lr=RATE, **options)
    package = importlib.import_module(AUTHORS[name])
    with contextlib.redirect_stdout(io.StringIO()):  # what it finds in a model
        return _of_authors[name](package, leaves)


def _adam_mini(package, leaves):
    named = {f"layers.{n}.mlp.weight": leaf for n, leaf in enumerate(leaves)}
    width = leaves[0].shape[-1]
    return package.Adam_mini(named.items(), RATE, dim=width, n_heads=1, verbose=False)


def _normuon(package, leaves):
    matrices = [leaf for leaf in leaves if leaf.dim() > 1]
    rest = [leaf for leaf in leaves if leaf.dim() < 2]
    groups = [{"params": matrices, "use_muon": True}]
    groups += [{"params": rest, "use_muon": False}] if rest else []
    return package.NorMuon(groups, lr=RATE)


_of_authors: dict[str, Callable[[Any, list[Any]], Any]] = {
    "adam-mini": _adam_mini,
    "pytorch_optimizer Nero": lambda package, leaves: package.Nero(leaves, lr=RATE),
    "pytorch_optimizer NorMuon": _normuon,
}
