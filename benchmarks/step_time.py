"""How long does a donated optimizer step take beside the optimizer everyone knows?

The contenders take turns, so that all of them meet the same disturbances.
"""

import argparse
import os
import platform
import shlex
import statistics
import sys
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from tqdm import tqdm

import neuron_optax


class Contender(NamedTuple):
    """An optimizer, the name of its baseline and the ratio it should not exceed."""

    optimizer: optax.GradientTransformation
    baseline: str
    bar: float | None = None


CONTENDERS = {
    "optax.adagrad": Contender(optax.adagrad(1e-3), "optax.adagrad"),
    "optax.rmsprop": Contender(optax.rmsprop(1e-3), "optax.rmsprop"),
    "optax.adam": Contender(optax.adam(1e-3), "optax.adam"),
    "neuron_adagrad": Contender(
        neuron_optax.neuron_adagrad(1e-3), "optax.adagrad", bar=0.75
    ),
    "neuron_rmsprop": Contender(neuron_optax.neuron_rmsprop(1e-3), "optax.rmsprop"),
    "adam_mini": Contender(neuron_optax.adam_mini(1e-3), "optax.adam", bar=1.0),
    "weight_norm_adam": Contender(neuron_optax.weight_norm_adam(1e-3), "optax.adam"),
}


class Timing(NamedTuple):
    """Seconds to compile, seconds of every call in order, bytes of the state."""

    compile_time: float
    calls: list[float]
    state_bytes: int


def main() -> None:
    """Print what ran, on what, and one row per contender."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.step_time", description=__doc__
    )
    parser.add_argument("--width", type=int, default=2048, help="rows and columns")
    parser.add_argument("--layers", type=int, default=12, help="kernels")
    parser.add_argument("--repeats", type=int, default=100, help="calls of each step")
    options = parser.parse_args()
    if options.repeats < 2 or min(options.width, options.layers) < 1:
        parser.error("needs --repeats of 2 or more, --width and --layers of 1 or more")
    print(header(options))
    timings = measure(
        lambda seed: kernels(seed, options.layers, options.width), options.repeats
    )
    print(table(timings))


def kernels(seed: int, layers: int, width: int) -> dict[str, jax.Array]:
    """Draw square float32 kernels whose columns have norms around one."""
    keys = jax.random.split(jax.random.key(seed), layers)
    return {
        f"layer{number:02}": jax.random.normal(key, (width, width)) / width**0.5
        for number, key in enumerate(keys)
    }


def measure(draw: Callable[[int], Any], repeats: int) -> dict[str, Timing]:
    """Compile every contender's step, then time ``repeats`` rounds of one call each."""
    grads = draw(0)
    steps, carried, timings = {}, {}, {}
    calls = tqdm(total=len(CONTENDERS) * (repeats + 1), desc="steps", unit="step")
    for name, contender in CONTENDERS.items():
        params = draw(1)
        state = jax.jit(contender.optimizer.init)(params)
        start = time.perf_counter()
        steps[name] = compiled_step(contender.optimizer, params, state, grads)
        compile_time = time.perf_counter() - start
        # the first call allocates, so it does not count
        carried[name] = jax.block_until_ready(steps[name](params, state, grads))
        timings[name] = Timing(
            compile_time, [], state_bytes(contender.optimizer, params)
        )
        calls.update()
    for _ in range(repeats):
        for name, step in steps.items():
            start = time.perf_counter()
            carried[name] = jax.block_until_ready(step(*carried[name], grads))
            timings[name].calls.append(time.perf_counter() - start)
            calls.update()
    calls.close()
    return timings


def compiled_step(
    optimizer: optax.GradientTransformation, params: Any, state: Any, grads: Any
) -> Callable[..., Any]:
    """Compile params, state, grads -> params, state; the old ones are overwritten."""

    def step(params, state, grads):
        updates, state = optimizer.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    return jax.jit(step, donate_argnums=(0, 1)).lower(params, state, grads).compile()


def state_bytes(optimizer: optax.GradientTransformation, params: Any) -> int:
    """Count the bytes of the state without making one."""
    leaves = jax.tree.leaves(jax.eval_shape(optimizer.init, params))
    return sum(leaf.size * leaf.dtype.itemsize for leaf in leaves)


def header(options: argparse.Namespace) -> str:
    """Say what ran: command, versions, device and shapes."""
    shape = f"({options.width}, {options.width})"
    size = options.layers * options.width**2 * jnp.float32.dtype.itemsize
    versions = [f"{name} {version(name)}" for name in ("jax", "jaxlib", "optax")]
    lines = {
        "command": shlex.join(["python", "-m", "benchmarks.step_time", *sys.argv[1:]]),
        "versions": ", ".join([f"python {platform.python_version()}", *versions]),
        "device": jax.devices()[0].device_kind,
        "cpu": f"{cpu_model()}, {os.cpu_count()} cores",
        "params": f"{options.layers} float32 kernels of {shape}, {size:,} bytes",
        "step": "params and state donated, best and quartiles of "
        f"{options.repeats} interleaved calls",
    }
    return "\n".join(f"{key + ':':9} {value}" for key, value in lines.items()) + "\n"


def cpu_model() -> str:
    """Name the processor, as the kernel does where it does."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    models = (line.split(":", 1)[1] for line in lines if line.startswith("model name"))
    return next(models, platform.processor()).strip()


def table(timings: dict[str, Timing]) -> str:
    """Format one row per contender, then one line per bar."""
    rows = [
        "contender | baseline | min ms | quartiles ms | ratio of min | "
        "quartiles of ratio by round | state bytes | compile s",
        "--- | --- | --: | --: | --: | --: | --: | --:",
    ]
    bars = []
    for name, (_, baseline, bar) in CONTENDERS.items():
        timing, base = timings[name], timings[baseline]
        ratio = min(timing.calls) / min(base.calls)
        rounds = [
            ours / theirs for ours, theirs in zip(timing.calls, base.calls, strict=True)
        ]
        milliseconds = [1e3 * call for call in timing.calls]
        rows.append(
            f"{name} | {baseline} | {min(milliseconds):.2f} | "
            f"{quartiles(milliseconds)} | {ratio:.2f} | {quartiles(rounds)} | "
            f"{timing.state_bytes:,} | {timing.compile_time:.2f}"
        )
        if bar is not None:
            bars.append(
                f"{name} / {baseline}: {ratio:.2f} by the minima, "
                f"{statistics.median(rounds):.2f} in the median round; bar {bar:.2f}"
            )
    return "\n".join([*(f"| {row} |" for row in rows), "", *bars])


def quartiles(values: list[float]) -> str:
    """Format the 25th, 50th and 75th percentile."""
    cuts = statistics.quantiles(values, n=4, method="inclusive")
    return " / ".join(f"{cut:.2f}" for cut in cuts)


if __name__ == "__main__":
    main()
