"""The command line: ``python -m neuron_optax plan --model llama-7b --mesh fsdp=64``."""

import argparse
import re
import sys
import textwrap
import warnings
from collections.abc import Sequence

import optax
from jax.sharding import AbstractMesh

from neuron_optax import strategies
from neuron_optax.architectures import ARCHITECTURES, architecture
from neuron_optax.memory import plan

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
    _add_plan(commands)
    chosen = parser.parse_args(arguments)
    chosen.run(chosen)


def _add_plan(commands) -> None:
    about = "print the bytes of optimizer state per device, from shapes alone"
    command = commands.add_parser("plan", help=about, description=about)
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
    command.set_defaults(run=lambda chosen: _plan(command, chosen))


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


if __name__ == "__main__":
    main()
