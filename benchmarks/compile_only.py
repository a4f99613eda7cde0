"""What does a sharded train step take on hardware that is not here?

Forward, backward and optimizer of a transformer are compiled together for every target,
as far as its compiler is installed, and never run.
"""

import argparse
import math
import platform
import shlex
import sys
import time
from collections import Counter
from collections.abc import Callable, Mapping
from importlib.metadata import distributions
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from tqdm import tqdm

import neuron_optax
from benchmarks import transformer
from benchmarks.collectives import Collective, beyond, collectives, within_neurons
from benchmarks.targets import TARGETS, mesh_of
from neuron_optax.sharding import state_specs

BASELINE, BARRED = "gradient only", "adam_mini"
OPTIMIZERS = {
    BASELINE: optax.sgd(1e-3),
    "optax.adam": optax.adam(1e-3),
    BARRED: neuron_optax.adam_mini(1e-3),
    "neuron_adagrad": neuron_optax.neuron_adagrad(1e-3),
    "normuon": neuron_optax.normuon(1e-3),
}


class Compiled(NamedTuple):
    """A train step as one device has it, and what compiling it took.

    Attributes:
      parameters: how many lie there.
      neurons: how many have their number there, by leaf.
      argument_bytes: of parameters, state and tokens.
      temp_bytes: beside the arguments and results.
      collectives: all that it takes part in.
      seconds: to trace and compile.
    """

    parameters: int
    neurons: list[int]
    argument_bytes: int
    temp_bytes: int
    collectives: list[Collective]
    seconds: float


Found = dict[str, dict[str, Compiled] | str]  # by target, then optimizer; or why not


def main() -> None:
    """Print what was compiled, one row per target and optimizer, and the bar."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.compile_only", description=__doc__
    )
    for name, default in transformer.Model()._asdict().items():
        parser.add_argument(f"--{name}", type=int, default=default)
    model = transformer.Model(**vars(parser.parse_args()))
    stay_on_cpu(devices=8)
    print(header(model))
    found = measure(model)
    print(table(found))
    for target, steps in found.items():
        if not isinstance(steps, str):
            print(f"\n{verdict(target, steps)}")


def stay_on_cpu(devices: int) -> None:
    """Let JAX look for no other devices, and simulate these."""
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_num_cpu_devices", devices)


def measure(model: transformer.Model) -> Found:
    """Compile every step for every target, or say why not."""
    found: Found = {}
    for name, target in TARGETS.items():
        try:
            mesh = mesh_of(target)
        except (ImportError, RuntimeError) as error:
            found[name] = str(error).splitlines()[0]
            continue
        found[name] = {
            optimizer: compiled_step(transform, model, mesh, target.options)
            for optimizer, transform in tqdm(OPTIMIZERS.items(), name, unit="step")
        }
    return found


def compiled_step(
    optimizer: optax.GradientTransformation,
    model: transformer.Model,
    mesh: Mesh,
    options: Mapping[str, Any],
    specs: Callable[..., Any] = state_specs,
) -> Compiled:
    """Compile a step, see `sharded_step`.

    Args:
      optimizer: what comes after forward and backward.
      model: what is trained.
      mesh: with the axes ``fsdp`` and ``tp``.
      options: of the compiler.
      specs: says where the state lies; called as `state_specs`.
    """
    step, args = sharded_step(optimizer, model, mesh, specs)
    params, state, _ = args
    start = time.perf_counter()
    compiled = step.lower(*args).compile(compiler_options=dict(options))
    return summary(compiled, params, state, time.perf_counter() - start)


def sharded_step(
    optimizer: optax.GradientTransformation,
    model: transformer.Model,
    mesh: Mesh,
    specs: Callable[..., Any] = state_specs,
) -> tuple[Any, tuple[Any, Any, Any]]:
    """Return params, state, tokens -> params, state, loss, jitted, and its arguments.

    The old params and state are donated; the arguments are shapes that know where they
    lie.
    """
    at = lambda *spec: NamedSharding(mesh, P(*spec))
    constrain = lambda x: jax.lax.with_sharding_constraint(x, at("fsdp"))

    def step(params, state, tokens):
        value, grads = jax.value_and_grad(transformer.loss)(params, tokens, constrain)
        updates, state = optimizer.update(grads, state, params)
        return optax.apply_updates(params, updates), state, value

    params = transformer.parameters(model, at)
    places = jax.tree.map(lambda leaf: leaf.sharding, params)
    kept = specs(optimizer, params, places, mesh)
    state = jax.tree.map(placed, jax.eval_shape(optimizer.init, params), kept)
    tokens = jax.ShapeDtypeStruct((model.batch, model.length + 1), jnp.int32)
    args = params, state, placed(tokens, at("fsdp"))
    jitted = jax.jit(step, donate_argnums=(0, 1), out_shardings=(places, kept, at()))
    return jitted, args


def summary(compiled: Any, params: Any, state: Any, seconds: float) -> Compiled:
    """Return what counts of a compiled step."""
    memory = compiled.memory_analysis()
    ours = optax.tree.get_all_with_path(state, neuron_optax.NeuronState.__name__)
    return Compiled(
        parameters=sum(sizes(params)),
        neurons=[size for _, found in ours for size in sizes(found.memory)],
        argument_bytes=memory.argument_size_in_bytes,
        temp_bytes=memory.temp_size_in_bytes,
        collectives=collectives(compiled.as_text()),
        seconds=seconds,
    )


def placed(leaf: jax.ShapeDtypeStruct, at: NamedSharding) -> jax.ShapeDtypeStruct:
    """Return a leaf that lies there."""
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=at)


def sizes(tree: Any) -> list[int]:
    """Count the entries of every leaf that one device holds."""
    shards = [leaf.sharding.shard_shape(leaf.shape) for leaf in jax.tree.leaves(tree)]
    return [math.prod(shard) for shard in shards]


def header(model: transformer.Model) -> str:
    """Say what ran: command, versions and shapes."""
    names = ("jax", "jaxlib", "optax", "libtpu", "jax-cuda12-plugin")
    found = {one.name.lower().replace("_", "-"): one.version for one in distributions()}
    versions = [f"{name} {found[name]}" for name in names if name in found]
    lines = {
        "command": shlex.join(
            ["python", "-m", "benchmarks.compile_only", *sys.argv[1:]]
        ),
        "versions": ", ".join([f"python {platform.python_version()}", *versions]),
        "model": ", ".join(f"{name} {size}" for name, size in model._asdict().items()),
        "step": "forward, backward and optimizer in float32, params and state donated",
    }
    return "\n".join(f"{key + ':':9} {value}" for key, value in lines.items()) + "\n"


def table(found: Found) -> str:
    """Format one row per target and optimizer, all numbers those of one device."""
    rows = [
        "target | optimizer | argument bytes per parameter | temp MiB | collectives | "
        "their numbers | beyond gradient only | their numbers | compile s",
        "--- | --- | --: | --: | --: | --: | --: | --: | --:",
    ]
    for target, steps in found.items():
        if isinstance(steps, str):
            rows.append(f"{target} | missing: {steps}" + " |" * 7)
            continue
        for name, step in steps.items():
            extra = beyond(step.collectives, steps[BASELINE].collectives)
            rows.append(
                f"{target} | {name} | {step.argument_bytes / step.parameters:.3f} | "
                f"{step.temp_bytes / 2**20:.1f} | {counted(step.collectives)} | "
                f"{counted(extra)} | {step.seconds:.1f}"
            )
    return "\n".join(f"| {row} |" for row in rows)


def counted(found: list[Collective]) -> str:
    """Format how many collectives there are, and how many numbers they return."""
    return f"{len(found)} | {sum(one.size for one in found):,}"


def verdict(target: str, steps: dict[str, Compiled]) -> str:
    """Say what the step under the bar sends beyond the baseline, and if it may."""
    step = steps[BARRED]
    extra = beyond(step.collectives, steps[BASELINE].collectives)
    listed = [f"{many} x {one}" for one, many in Counter(extra).items()]
    floats, neurons = sum(one.size for one in extra), sum(step.neurons)
    kept = "OK" if within_neurons(extra, step.neurons) else "violated"
    return (
        f"{BARRED} on {target} beyond {BASELINE}: {', '.join(listed) or 'nothing'}\n"
        f"  {floats:,} numbers for {neurons:,} neurons on a device; "
        f"vector all-reduces of at most one float per neuron: {kept}"
    )


if __name__ == "__main__":
    main()
