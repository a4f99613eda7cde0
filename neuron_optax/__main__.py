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
ENTRIES = axes.PER_ENTRY
PEERS = {  # ours, and torch's with what it needs to be the same
    "optax.sgd": (optax.sgd(RATE, momentum=0.9), "SGD", {"momentum": 0.9}),
    "optax.adam": (optax.adam(RATE), "Adam", {}),
    "optax.rmsprop": (optax.rmsprop(RATE), "RMSprop", {"alpha": 0.9}),
    "neuron_adagrad": (
        strategies.neuron_adagrad(RATE, neurons=ENTRIES),
        "Adagrad",
        {"eps": 1e-8},
    ),
    "neuron_rmsprop": (
        strategies.neuron_rmsprop(RATE, neurons=ENTRIES),
        "RMSprop",
        {"alpha": 0.9},
    ),
    "adam_mini": (strategies.adam_mini(RATE, neurons=ENTRIES), "Adam", {}),
}
LAYER = {"kernel": (8, 4), "bias": (4,)}  # on which they are compared


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command that is named by the first argument.

    Args:
      arguments: as on the command line, which they are taken from if ``None``.

    Raises:
      SystemExit: for arguments that do not fit, with a message.
    """
    parser = argparse.ArgumentParser(
        prog="python -m neuron_optax", description="One learning rate per neuron."
    )
    commands = parser.add_subparsers(title="commands", required=True, dest="command")
    for add in (_add_describe, _add_plan, _add_strategies, _add_compare):
        add(commands)
    chosen = parser.parse_args(arguments)
    chosen.run(chosen)


def _command(
    commands: Any, name: str, run: Callable[..., None], about: str
) -> argparse.ArgumentParser:
    command = commands.add_parser(name, help=about, description=about)
    command.set_defaults(run=functools.partial(run, command))
    return command


def _add_describe(commands: Any) -> None:
    about = "print which axes of every leaf index its neurons"
    command = _command(commands, "describe", _describe, about)
    saved = "an Orbax directory, .npz, .msgpack of Flax or .safetensors"
    command.add_argument("path", nargs="?", type=pathlib.Path, help=saved)
    command.add_argument("--model", choices=ARCHITECTURES, help="in place of a path")
    command.add_argument("--at", metavar="NAME", help="a part of it, such as params")
    layouts = [*LAYOUTS, "infer"]
    rules = "whose rules; infer takes the neurons from the biases"
    command.add_argument("--layout", choices=layouts, default="flax", help=rules)
    alike = "one by one what differs in the numbers of its path alone"
    command.add_argument("--all", action="store_true", help=alike)


def _describe(command: argparse.ArgumentParser, chosen: argparse.Namespace) -> None:
    if (chosen.path is None) == (chosen.model is None):
        command.error("give either a path or --model")
    tree = architecture(chosen.model)[0] if chosen.model else _saved(command, chosen)
    leaves, under = dict(named_leaves(tree)), f"{chosen.at}/" if chosen.at else ""
    inside = [path for path in leaves if path.startswith(under)]
    shapes = {path.removeprefix(under): leaves[path] for path in inside}
    if not shapes:
        names = dict.fromkeys(path.partition("/")[0] for path in leaves)
        command.error(f"no leaves at {chosen.at!r}, but at {', '.join(names)}")
    infer = chosen.layout == "infer"
    layout = axes.infer_layout(shapes) if infer else LAYOUTS[chosen.layout]
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        axes.describe(shapes, layout)
    lines = printed.getvalue().splitlines()
    print("\n".join(lines if chosen.all else _folded(lines)))


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
    about = "print the bytes of optimizer state per device, from shapes alone"
    command = _command(commands, "plan", _plan, about)
    command.add_argument("--model", required=True, choices=ARCHITECTURES)
    command.add_argument(
        "--mesh", type=_mesh, default="", help="devices per axis: fsdp=64,tp=8"
    )
    command.add_argument(
        "--strategies",
        type=_names,
        default=",".join(SHOWN),
        help=f"of {', '.join(STRATEGIES)}; separated by commas",
    )


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
        print("note:", textwrap.shorten(str(warning.message), 200), file=sys.stderr)


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
    about = "print the table of strategies, or what one of them computes"
    command = _command(commands, "strategies", _strategies, about)
    one = f"one of {', '.join(DESCRIBED)}"
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
    about = "run an optimizer and torch's on the same random gradients (extra torch)"
    command = _command(commands, "compare", _compare, about)
    command.add_argument("name", choices=PEERS, help="ours have a neuron per entry")
    command.add_argument("--steps", type=_positive, default=20, help="how many")
    dtypes = "float64", "float32", "bfloat16"
    said = "of both sides"
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
    print(f"{chosen.name} and torch.optim.{name}({said}) in {chosen.dtype}")
    theirs = lambda named: getattr(torch.optim, name)(named.values(), RATE, **options)
    with jax.enable_x64(chosen.dtype == "float64"):
        params = jax.tree.map(
            lambda leaf: jax.numpy.asarray(leaf, chosen.dtype), draw()
        )
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
