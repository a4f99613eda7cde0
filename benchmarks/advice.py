"""Does a transformer learn as well with the second moments that advice lets it share?

It writes Python, byte by byte, from modules of the standard library. Adam's states on
the first seed give the advice; then Adam with shared second moments trains from the
same starts, on the same batches and with the same learning rates. Against the advice,
every matrix shares along that of its two sides, fan-in and neurons, whose ratio is the
lower. Factors are not stored, so that states differ by their second moments alone.
"""

import argparse
import inspect
import json
import platform
import re
import shlex
import textwrap
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import NamedSharding, PartitionSpec
from tqdm import tqdm

from benchmarks.timing import header, itemized
from benchmarks.transformer import Model, loss, parameters
from neuron_optax import (
    SLIM_ADAM,
    Layout,
    ema,
    inverse_root,
    mean_square,
    scale_per_neuron,
)
from neuron_optax.advice import SignalToNoise, granularities, snr, suggest_layout
from neuron_optax.memory import state_bytes
from neuron_optax.trees import map_named

LEARNED, HELD_OUT = (argparse, inspect, platform, json.decoder), (textwrap, shlex)
START = {"scale": 1.0, "bias": 0.0}  # other leaves start at random
CONTENDERS = 5
PARTS = 10  # of a training, after each of which the state is read


def main() -> None:
    """Take Adam's advice, train with it, without it and against it, print a table."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.advice", description=__doc__
    )
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument("--rates", type=float, nargs="+", default=[0.003, 0.012])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    options = parser.parse_args()
    print(itemized(header("benchmarks.advice")))
    model = Model(2, options.width, vocabulary=128, batch=16)
    total = CONTENDERS * len(options.rates) * len(options.seeds) * PARTS
    with tqdm(total=total, unit="part") as bar:
        for start in options.rates:
            print(f"\nlearning rate {start} at the start, 0 at the end\n")
            rate = optax.cosine_decay_schedule(start, options.steps)
            print("\n" + compare(model, rate, options.steps, options.seeds, bar))


def compare(model: Model, rate: Any, steps: int, seeds: list[int], bar: Any) -> str:
    """Take the advice of Adam's states on the first seed; return a table of losses."""
    adam, shapes = optax.adam(rate), unsharded(model)
    run = lambda by, seed: train(by, model, seed, steps // PARTS, bar)
    plain, ratios = zip(*(run(adam, seed) for seed in seeds), strict=True)
    layouts = {
        "shared by the advice": suggest_layout(ratios[0]),
        "the same at cutoff 2": suggest_layout(ratios[0], cutoff=2, show=False),
        "shared against it": against(snr(ratios[0])),
        "shared by the authors' rules": SLIM_ADAM,
    }
    losses, sizes = {"adam": plain}, {"adam": state_bytes(adam, shapes)}
    for name, layout in layouts.items():
        by = sharing(layout, rate)
        losses[name] = tuple(run(by, seed)[0] for seed in seeds)
        sizes[name] = state_bytes(by, shapes)
    return table(losses, sizes)


def unsharded(model: Model) -> Any:
    """Return the shapes of the parameters, on one device."""
    whole = NamedSharding(jax.make_mesh((1,), ("device",)), PartitionSpec())
    return parameters(model, lambda *names: whole)


def sharing(layout: Layout, rate: optax.Schedule) -> optax.GradientTransformation:
    """Return `slim_adam` without its stored factors."""
    scaled = scale_per_neuron(
        mean_square,
        ema(0.999),
        inverse_root(1e-8),
        neurons=layout,
        direction=optax.ema(0.9),
        store_rate=False,
    )
    return optax.chain(scaled, optax.scale_by_learning_rate(rate))


def against(found: SignalToNoise) -> Layout:
    """Return a layout that shares along the side of each matrix that is the worse."""
    rules = {}
    for path, axes in found.layout.resolve(found.leaves).items():
        if ways := granularities(axes):
            way = min(("neuron", "input"), key=lambda way: found.ratios[path][way])
            rules[f"^{re.escape(path)}$"] = ways[way]
    return found.layout.override(rules)


def train(
    optimizer: Any, model: Model, seed: int, steps: int, bar: Any
) -> tuple[float, list[SignalToNoise]]:
    """Return the loss on text held out, and the ratios after each part if Adam's."""
    rng = np.random.default_rng(seed)

    def start(path, leaf):
        name = path.rpartition("/")[2]
        drawn = START[name] if name in START else rng.normal(0, 0.05, leaf.shape)
        return jnp.full(leaf.shape, drawn, leaf.dtype)

    params = map_named(start, unsharded(model))
    mean_loss = lambda params, tokens: loss(params, tokens, lambda x: x)

    @jax.jit
    def part(carry, batches):
        def step(carry, tokens):
            params, state = carry
            gradients = jax.grad(mean_loss)(params, tokens)
            updates, state = optimizer.update(gradients, state, params)
            return (optax.apply_updates(params, updates), state), None

        return jax.lax.scan(step, carry, batches)[0]

    carry, ratios = (params, optimizer.init(params)), []
    for _ in range(PARTS):
        carry = part(carry, batches(LEARNED, rng, steps, model))
        if optax.tree.get(carry[1], "ScaleByAdamState"):
            ratios.append(snr(carry[1]))
        bar.update()
    held_out = batches(HELD_OUT, np.random.default_rng(0), 20, model)
    losses = jax.jit(jax.vmap(mean_loss, (None, 0)))(carry[0], held_out)
    return float(losses.mean()), ratios


def batches(modules: Any, rng: np.random.Generator, count: int, model: Model) -> Any:
    """Draw pieces of the sources of some modules, byte by byte."""
    text = "".join(map(inspect.getsource, modules)).encode("ascii", "replace")
    starts = rng.integers(len(text) - model.length, size=(count, model.batch))
    places = starts[..., None] + np.arange(model.length + 1)
    return jnp.asarray(np.frombuffer(text, np.uint8)[places], jnp.int32)


def table(losses: Mapping[str, tuple[float, ...]], sizes: Mapping[str, int]) -> str:
    """Format the bytes of each state, its mean loss, and what it loses to Adam."""
    rows = ["optimizer | state bytes | held-out loss | less Adam's, by seed"]
    rows += ["--- | --: | --: | --:"]
    for name, found in losses.items():
        behind = np.subtract(found, losses["adam"])
        by_seed = ", ".join(f"{of:+.3f}" for of in behind)
        rows.append(f"{name} | {sizes[name]:,} | {np.mean(found):.3f} | {by_seed}")
    return "\n".join(f"| {row} |" for row in rows)


if __name__ == "__main__":
    main()
