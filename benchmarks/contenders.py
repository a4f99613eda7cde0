"""Optimizers in JAX: a stream of the same bytes, Optax's and ours."""

import re
import time
from typing import Any

import jax
import optax

from benchmarks.timing import Runner
from benchmarks.workloads import as_float32, draw
from neuron_optax import FLAX, strategies
from neuron_optax.memory import state_bytes
from neuron_optax.projections import is_matrix
from neuron_optax.strategies.alias import AUXILIARY
from neuron_optax.trees import map_named

RATE = 1e-3
STREAM = "stream"  # params - rate * grads in float32: no optimizer moves fewer bytes
OPTAX = {
    f"optax.{name}": make(RATE)
    for name, make in {
        "adagrad": optax.adagrad,
        "rmsprop": optax.rmsprop,
        "adam": optax.adam,
        "lamb": optax.lamb,
        "fromage": optax.fromage,
        "adafactor": optax.adafactor,
        "sm3": optax.sm3,
        "muon": optax.contrib.muon,
    }.items()
}
MORE = {  # than a learning rate
    "layerwise": strategies.layerwise({"": RATE}),
    "layerwise_decay": strategies.layerwise_decay(RATE, 0.5, [""]),
}
OURS = MORE | {
    name: getattr(strategies, name)(RATE)
    for name in strategies.__all__
    if name.islower() and not name.startswith(("scale_", "row_", "layerwise"))
}
SGD = {"optax.sgd": optax.sgd(RATE)}
OPTIMIZERS = {STREAM: optax.sgd(RATE)} | SGD | OPTAX | OURS
BASELINES = {  # of ours; all others are compared with Adam
    **dict.fromkeys(("neuron_adagrad", "rowwise_adagrad"), "optax.adagrad"),
    **dict.fromkeys(("neuron_rmsprop",), "optax.rmsprop"),
    **dict.fromkeys(("neuron_lamb",), "optax.lamb"),
    **dict.fromkeys(("nero",), "optax.fromage"),
    **dict.fromkeys(("normuon", "muown", "namo_d"), "optax.muon"),
}


def muon_dimensions(shapes: Any) -> Any:
    """Say to Optax's Muon which axes of a Flax model's matrices are which."""
    axes = FLAX.resolve(shapes)
    return map_named(
        lambda path, leaf: (
            optax.contrib.MuonDimensionNumbers(axes[path].fan_in, axes[path].output)
            if is_matrix(axes[path]) and not re.search(AUXILIARY, path)
            else None
        ),
        shapes,
    )


def optimizer_of(name: str, shapes: Any) -> optax.GradientTransformation:
    """Return a contender; of Optax's Muon also what the matrices of a model are."""
    if name != "optax.muon":
        return OPTIMIZERS[name]
    return optax.contrib.muon(
        RATE, muon_weight_dimension_numbers=muon_dimensions(shapes)
    )


def compiled(name: str, shapes: Any, grads: Any) -> Runner:
    """Compile params, state, grads -> params, state; the old ones are overwritten."""
    optimizer = optimizer_of(name, shapes)
    if name == STREAM:
        shapes = as_float32(shapes)
        grads = draw(shapes, 0)

    def step(params, state, grads):
        updates, state = optimizer.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    params = draw(shapes, 1)
    state = jax.jit(optimizer.init)(params)
    start = time.perf_counter()
    lowered = jax.jit(step, donate_argnums=(0, 1)).lower(params, state, grads)
    call = lowered.compile()
    seconds = time.perf_counter() - start
    carried = [(params, state)]

    def run():
        carried[0] = jax.block_until_ready(call(*carried[0], grads))

    memory = call.memory_analysis()
    temp = memory and memory.temp_size_in_bytes
    return Runner(run, state_bytes(optimizer, shapes), seconds, temp)
