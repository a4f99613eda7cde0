"""The command line: ``python -m neuron_optax --help``."""

import argparse
import collections
import contextlib
import functools
import importlib
import inspect
import io
import os
import pathlib
import re
import sys
import textwrap
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
import optax
from jax.sharding import AbstractMesh

from neuron_optax import axes, strategies
from neuron_optax.architectures import ARCHITECTURES, architecture
from neuron_optax.memory import plan
from neuron_optax.saved import saved_shapes
from neuron_optax.trees import named_leaves

AXES = "fsdp", "tp"
OTHERS = {  # of Optax, and ours that need more than a learning rate
    "optax.adamw": optax.adamw(1.0),
    "optax.adafactor": optax.adafactor(1.0),
    "optax.lion": optax.lion(1.0),
    "layerwise": strategies.layerwise({"": 1.0}),
    "layerwise_decay": strategies.layerwise_decay(1.0, 0.5, [""]),
}
OURS = {
    name: getattr(strategies, name)(1.0)
    for name in strategies.__all__
    if name.islower() and not name.startswith(("scale_", "row_"))
    if name not in OTHERS
}
STRATEGIES = OTHERS | OURS
SHOWN = [
    *("optax.adamw", "optax.lion", "normuon", "slim_adam"),
    *("adam_mini", "neuron_rmsprop", "rowwise_adagrad"),
]
DESCRIBED = [name for name in strategies.__all__ if name.islower()]
LAYOUTS = {
    name.lower(): getattr(axes, name)
    for name in ("FLAX", "TORCH", "HAIKU", "ADAM_MINI", "SLIM_ADAM")
}
ALIKE = 4  # leaves and more that are described in one line
RATE = 0.1
PER_ENTRY = {
    name: getattr(strategies, name)(RATE, neurons=axes.PER_ENTRY)
    for name in ("neuron_adagrad", "neuron_rmsprop", "adam_mini")
}
PEERS = {  # ours, and torch's with what it needs to be the same
    "optax.sgd": (optax.sgd(RATE, momentum=0.9), "SGD", {"momentum": 0.9}),
    "optax.adam": (optax.adam(RATE), "Adam", {}),
    "optax.rmsprop": (optax.rmsprop(RATE), "RMSprop", {"alpha": 0.9}),
    "neuron_adagrad": (PER_ENTRY["neuron_adagrad"], "Adagrad", {"eps": 1e-8}),
    "neuron_rmsprop": (PER_ENTRY["neuron_rmsprop"], "RMSprop", {"alpha": 0.9}),
    "adam_mini": (PER_ENTRY["adam_mini"], "Adam", {}),
}
NOTES = {
    "optax.rmsprop": "optax.rmsprop adds eps inside the root and torch outside, so "
    "that the two part where gradients are small",
}
TOPS = {"params", "model", "opt_state", "optimizer", "batch_stats"}  # of checkpoints
LAYER = {"kernel": (8, 4), "bias": (4,)}  # on which they are compared


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command that is named by the first argument.

    Args:
      arguments: as on the command line, which they are taken from if ``None``.

    Raises:
      SystemExit: for arguments that do not fit, with a message.
    """
    parser = argparse.ArgumentParser(
        prog="python -m neuron_optax",
        description="Look at optimizers that have one learning rate per neuron: which "
        "axes of a model are its neurons, what the state of an optimizer weighs, what "
        "an optimizer computes, and whether it does what PyTorch's does.",
        epilog="Every command has a --help of its own, which ends in an example.",
    )
    commands = parser.add_subparsers(title="commands", required=True, dest="command")
    for add in (_add_describe, _add_plan, _add_strategies, _add_compare):
        add(commands)
    chosen = parser.parse_args(arguments)
    chosen.run(chosen)


def _command(
    commands: Any, name: str, run: Callable[..., None], about: str, example: str
) -> argparse.ArgumentParser:
    epilog = f"Example: python -m neuron_optax {name} {example}"
    command = commands.add_parser(name, help=about, description=about, epilog=epilog)
    command.set_defaults(run=functools.partial(run, command))
    return command


def _add_describe(commands: Any) -> None:
    about = "Print which axes of every array of a model or checkpoint are its neurons."
    example = "checkpoint.npz --at params --layout flax"
    command = _command(commands, "describe", _describe, about, example)
    saved = (
        "The checkpoint: an Orbax directory, .npz, .msgpack of Flax or .safetensors."
    )
    command.add_argument("path", nargs="?", type=pathlib.Path, help=saved)
    known = "Describe a model that is known by name, in place of a checkpoint."
    command.add_argument("--model", choices=ARCHITECTURES, help=known)
    part = "Describe one part of the checkpoint, such as params (default: all of it)."
    command.add_argument("--at", metavar="NAME", help=part)
    rules = "The rules that say what a neuron is; infer follows the biases"
    rules = f"{rules} (default: %(default)s)."
    layouts = [*LAYOUTS, "infer"]
    command.add_argument("--layout", choices=layouts, default="flax", help=rules)
    alike = "Print every layer by itself (default: layers that are alike share lines)."
    command.add_argument("--all", action="store_true", help=alike)


def _describe(command: argparse.ArgumentParser, chosen: argparse.Namespace) -> None:
    if (chosen.path is None) == (chosen.model is None):
        command.error("give either a path or --model")
    tree = architecture(chosen.model)[0] if chosen.model else _saved(command, chosen)
    leaves, under = dict(named_leaves(tree)), f"{chosen.at}/" if chosen.at else ""
    inside = [path for path in leaves if path.startswith(under)]
    shapes = {path.removeprefix(under): leaves[path] for path in inside}
    tops = dict.fromkeys(path.partition("/")[0] for path in leaves)
    if not shapes:
        command.error(f"no leaves at {chosen.at!r}, but at {', '.join(tops)}")
    infer = chosen.layout == "infer"
    layout = axes.infer_layout(shapes) if infer else LAYOUTS[chosen.layout]
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        axes.describe(shapes, layout)
    lines = printed.getvalue().splitlines()
    print(*(lines if chosen.all else _folded(lines)), sep="\n")
    if chosen.layout == "flax" and any(re.search("(^|/)weight$", p) for p in shapes):
        _note("arrays are called weight, as those of PyTorch: try --layout torch")
    if not chosen.at and len(tops) > 1 and tops.keys() & TOPS:
        _note(f"the entries at its top are {', '.join(tops)}: --at NAME prints one")


def _note(text: str) -> None:
    print("note:", text, file=sys.stderr)


def _saved(command: argparse.ArgumentParser, chosen: argparse.Namespace) -> Any:
    try:
        return saved_shapes(chosen.path)
    except ImportError as error:
        command.error(f"{chosen.path}: needs a package: {error}")
    except Exception as error:  # the four readers have no class in common
        command.error(f"{chosen.path}: {error}")


def _folded(lines: Sequence[str]) -> list[str]:
    """Return as one line those that differ in the numbers of their paths, counted."""
    paths = [line.partition(" ")[0] for line in lines]
    general = [re.sub(r"\d+", "*", path).ljust(len(path)) for path in paths]
    pairs = zip(lines, paths, general, strict=True)
    folded = [line.replace(path, star, 1) for line, path, star in pairs]
    alike = [re.sub(" +", " ", line) for line in folded]  # whatever the padding
    counts = collections.Counter(alike)
    if max(counts.values()) < ALIKE:
        return list(lines)
    kept = [f"leaves  {lines[0]}"]
    for n, line in enumerate(lines[1:], start=1):
        count = counts[alike[n]]
        if count < ALIKE:
            kept.append(f"{1:6}  {line}")
        elif n == alike.index(alike[n]):
            kept.append(f"{count:6}  {folded[n]}")
    return kept


def _add_plan(commands: Any) -> None:
    about = "Print the bytes of optimizer state per device, computed from shapes alone."
    example = "--model llama-7b --mesh fsdp=64,tp=8 --strategies optax.adamw,adam_mini"
    command = _command(commands, "plan", _plan, about, example)
    one = "The model, by name (required)."
    command.add_argument("--model", required=True, choices=ARCHITECTURES, help=one)
    mesh = (
        "How many devices the arrays are divided over, by fully sharded (fsdp) and by "
        "tensor (tp) parallelism, such as fsdp=64,tp=8 (default: one device)."
    )
    command.add_argument("--mesh", type=_mesh, default="", help=mesh)
    some = "The optimizers that are listed, separated by commas (default: %(default)s)"
    some, shown = f"{some}, of {', '.join(STRATEGIES)}.", ",".join(SHOWN)
    command.add_argument("--strategies", type=_names, default=shown, help=some)


def _plan(command: argparse.ArgumentParser, chosen: argparse.Namespace) -> None:
    optimizers = {name: STRATEGIES[name] for name in chosen.strategies}
    shapes, specs = architecture(chosen.model)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", UserWarning)
        try:
            print(plan(shapes, optimizers, specs, chosen.mesh))
        except ValueError as error:  # of axes that the mesh does not divide
            command.error(str(error))
    for warning in caught:  # of hundreds of leaves
        _note(textwrap.shorten(str(warning.message), 200))


def _mesh(text: str) -> AbstractMesh:
    pairs = re.findall(r"(\w+)=([1-9][0-9]*)(?:,|$)", text)
    sizes = {axis: int(size) for axis, size in pairs}
    if text != ",".join(map("=".join, pairs)) or len(sizes) < len(pairs):
        raise argparse.ArgumentTypeError(f"wanted such as fsdp=64,tp=8, got {text!r}")
    if unknown := sizes.keys() - AXES:
        raise argparse.ArgumentTypeError(f"wanted axes of {AXES}, got {unknown}")
    return AbstractMesh(tuple(sizes.get(axis, 1) for axis in AXES), AXES)


def _names(text: str) -> list[str]:
    names = text.split(",")
    if unknown := [name for name in names if name not in STRATEGIES]:
        raise argparse.ArgumentTypeError(
            f"wanted some of {', '.join(STRATEGIES)}, got {unknown}"
        )
    return names


def _add_strategies(commands: Any) -> None:
    about = "Print the table of strategies, or the documentation of one of them."
    command = _command(commands, "strategies", _strategies, about, "adam_mini")
    one = f"Print this one alone (default: the table), of {', '.join(DESCRIBED)}."
    command.add_argument("name", nargs="?", choices=DESCRIBED, metavar="name", help=one)


def _strategies(command: argparse.ArgumentParser, chosen: argparse.Namespace) -> None:
    if chosen.name is None:
        text = inspect.getdoc(strategies) or ""
        tables = text[text.index("Bytes are of the state") :]
        print(tables.replace("::", ":"))
        return
    strategy = getattr(strategies, chosen.name)
    head, *_ = re.split(r'\n    r?"""', inspect.getsource(strategy), maxsplit=1)
    print(f"{head}\n\n{inspect.getdoc(strategy)}")


def _add_compare(commands: Any) -> None:
    about = (
        "Run an optimizer and its counterpart of PyTorch on the same random gradients, "
        "and print how far their weights are apart (needs the extra torch)."
    )
    example = "adam_mini --steps 100 --dtype bfloat16"
    command = _command(commands, "compare", _compare, about, example)
    one = "The optimizer; those of neuron_optax get one neuron per entry, as PyTorch's."
    command.add_argument("name", choices=PEERS, help=one)
    many = "How many steps both take (default: %(default)s)."
    command.add_argument("--steps", type=_positive, default=20, help=many)
    dtypes = "float64", "float32", "bfloat16"
    said = "The dtype of weights and gradients on both sides (default: %(default)s)."
    command.add_argument("--dtype", choices=dtypes, default=dtypes[0], help=said)


def _compare(command: argparse.ArgumentParser, chosen: argparse.Namespace) -> None:
    try:
        torch = importlib.import_module("torch")
    except ImportError as error:
        command.error(f"needs the extra torch, neuron-optax[torch]: {error}")
    from neuron_optax.interop.compare import compare_with_torch  # imports torch

    rng, sizes = np.random.default_rng(0), np.logspace(-3, 3, 4)  # of four neurons
    draw = lambda: {n: sizes * rng.standard_normal(s) for n, s in LAYER.items()}
    ours, name, options = PEERS[chosen.name]
    said = ", ".join(f"{key}={value}" for key, value in {"lr": RATE, **options}.items())
    mine = chosen.name
    if mine in PER_ENTRY:
        mine += " with one neuron per entry (PER_ENTRY)"
    print(f"{mine} and torch.optim.{name}({said}) in {chosen.dtype}")
    if chosen.name in NOTES:
        print(f"note: {NOTES[chosen.name]}")
    theirs = lambda named: getattr(torch.optim, name)(named.values(), RATE, **options)
    cast = lambda leaf: jax.numpy.asarray(leaf, chosen.dtype)
    with jax.enable_x64(chosen.dtype == "float64"):
        params = jax.tree.map(cast, draw())
        compare_with_torch(ours, theirs, params, (draw() for _ in range(chosen.steps)))


def _positive(text: str) -> int:
    if not re.fullmatch("0*[1-9][0-9]*", text):
        raise argparse.ArgumentTypeError(f"wanted a positive number, got {text!r}")
    return int(text)


if __name__ == "__main__":
    try:
        main()
        sys.stdout.flush()
    except BrokenPipeError:  # by head, say, which reads no further
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
