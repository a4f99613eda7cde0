"""Which ways to write the same step does XLA make fastest? What was tried, and lost.

A group of formulations takes turns; the first of each is what the others are compared
with, and the one marked with a star is what the library does.
"""

import argparse
import itertools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from benchmarks.contenders import OPTIMIZERS
from benchmarks.timing import compare, header, itemized, listed, race, table
from benchmarks.workloads import dense, draw

RATE = 1e-3
apart = jax.lax.optimization_barrier
Step = Callable[[Any, Any], Any]


def scaled(statistic: Callable[[Any], Any], axis: int = 0) -> Step:
    """Return a step along the gradient over the root of its mean square."""

    def leaf(param, grad):
        size = jnp.sqrt(jnp.expand_dims(statistic(grad), axis) / grad.shape[axis])
        return param - jnp.asarray(RATE * grad / (size + 1e-8), param.dtype)

    return lambda params, grads: jax.tree.map(leaf, params, grads)


def leaf_by_leaf(step: Step) -> Step:
    """Begin with a leaf when the one before it is done, while it is in caches."""

    def every(params, grads):
        moved = []
        leaves, tree = jax.tree.flatten(params)
        for param, grad in zip(leaves, jax.tree.leaves(grads), strict=True):
            if moved:
                grad, moved[-1] = apart((grad, moved[-1]))
            moved.append(step(param, grad))
        return jax.tree.unflatten(tree, moved)

    return every


def upcast(grad: jax.Array) -> jax.Array:
    """Return the sum of squares in float32."""
    return jnp.sum(jnp.square(jnp.asarray(grad, jnp.float32)), 0)


STATISTICS = {
    "no statistic": lambda params, grads: jax.tree.map(
        lambda param, grad: param - RATE * grad, params, grads
    ),
    "sum(g * g)*": scaled(lambda g: jnp.sum(g * g, 0)),
    "einsum": scaled(lambda g: jnp.einsum("ij,ij->j", g, g)),
    "vdot of every column": scaled(jax.vmap(lambda c: jnp.vdot(c, c), 1)),
    "sums of 16 blocks, summed": scaled(
        lambda g: jnp.sum(jnp.sum((g * g).reshape(16, -1, g.shape[1]), 1), 0)
    ),
    "sum(g * g), leaf by leaf": leaf_by_leaf(scaled(lambda g: jnp.sum(g * g, 0))),
    "contiguous axis": scaled(lambda g: jnp.sum(g * g, 1), axis=1),
    "contiguous axis, leaf by leaf": leaf_by_leaf(
        scaled(lambda g: jnp.sum(g * g, 1), axis=1)
    ),
    "sum(g * g + tiny)": scaled(lambda g: jnp.sum(g * g + 1e-30, 0)),
    "sum of squares of c * g": scaled(lambda g: jnp.sum(jnp.square(0.5 * g), 0)),
    "slices added, then summed": scaled(
        lambda g: jnp.sum(g[::2] * g[::2] + g[1::2] * g[1::2], 0)
    ),
    "ones @ (g * g)": scaled(lambda g: jnp.ones(len(g)) @ (g * g)),
}


def guarded(guard: Callable[[Any, Any], Any]) -> Step:
    """Return the step of the plain statistic; a neuron that overflows takes none."""

    def leaf(param, grad):
        size = jnp.sqrt(jnp.mean(grad * grad, 0, keepdims=True))
        rate = apart(jnp.where(jnp.isfinite(size), RATE / (size + 1e-8), 0))
        return param - guard(rate, grad)

    return lambda params, grads: jax.tree.map(leaf, params, grads)


def bound(rate: jax.Array) -> jax.Array:
    """Return infinity, or 0 for a neuron that takes no step."""
    return jnp.where(rate != 0, jnp.inf, 0.0)


GUARDS = {
    "no guard": guarded(lambda rate, grad: rate * grad),
    "entries chosen by neuron": guarded(
        lambda rate, grad: rate * jnp.where(rate != 0, grad, 0)
    ),
    "products chosen by neuron": guarded(
        lambda rate, grad: jnp.where(rate != 0, rate * grad, 0)
    ),
    "entries compared with bounds*": guarded(
        lambda rate, grad: rate * jnp.where(jnp.abs(grad) < bound(rate), grad, 0)
    ),
}
NARROW = {
    "no statistic": STATISTICS["no statistic"],
    "converted for both loops": scaled(upcast),
    "converted in each loop*": scaled(lambda g: upcast(apart(g))),
}


def shared(momentum: Callable[..., Any], again: Callable[..., Any]) -> Any:
    """Return a step of Adam-mini, and how its momentum is had for the params."""

    def leaf(param, state, grad):
        kept, size = state
        size = 0.999 * size + 0.001 * jnp.mean(grad * grad, 0, keepdims=True)
        new = momentum(kept, grad)
        rate = RATE / (jnp.sqrt(size) + 1e-8)
        return param - rate * again(kept, grad, new), (new, size)

    def step(params, state, grads):
        leaves, tree = jax.tree.flatten(params)
        args = zip(leaves, state, jax.tree.leaves(grads), strict=True)
        params, state = map(list, zip(*itertools.starmap(leaf, args), strict=True))
        return jax.tree.unflatten(tree, params), state

    def init(params):
        leaves = jax.tree.leaves(params)
        return [(jnp.zeros_like(leaf), jnp.zeros_like(leaf[:1])) for leaf in leaves]

    return init, step


def mean(kept: jax.Array, grad: jax.Array) -> jax.Array:
    """Return the running mean."""
    return 0.9 * kept + 0.1 * grad


def in_blocks(kept: jax.Array, grad: jax.Array) -> jax.Array:
    """Return the running mean, written block by block in place."""
    rows = max(len(kept) // 16, 1)

    def block(number, new):
        cut = lambda x: jax.lax.dynamic_slice_in_dim(x, number * rows, rows)
        part = mean(cut(new), cut(grad))
        return jax.lax.dynamic_update_slice_in_dim(new, part, number * rows, 0)

    return jax.lax.fori_loop(0, len(kept) // rows, block, kept)


MOMENTUM = {
    "momentum, then params*": shared(mean, lambda kept, grad, new: new),
    "momentum made again for the params": shared(
        mean, lambda kept, grad, new: mean(*apart((kept, grad)))
    ),
    "momentum block by block": shared(in_blocks, lambda kept, grad, new: new),
}


def newton_schulz(product: Callable[..., Any], low: Any = None) -> Callable[..., Any]:
    """Return five steps on matrices along the last two axes."""

    def iterate(x):
        x = x / jnp.sqrt(jnp.sum(x * x, (-2, -1), keepdims=True))
        for _ in range(5):
            y = jnp.asarray(x, low)
            gram = product(y, y)
            square = jnp.asarray(gram, low)
            both = jnp.asarray(-4.7750 * gram + 2.0315 * (square @ square), low)
            x = jnp.asarray(3.4445 * x + both @ y, x.dtype)
        return x

    return iterate


def transposed(x: jax.Array, y: jax.Array) -> jax.Array:
    """Multiply with the transpose."""
    return x @ turned(y)


def contracted(x: jax.Array, y: jax.Array) -> jax.Array:
    """Contract the last axes, which needs no transpose."""
    return jnp.einsum("...ik,...jk->...ij", x, y)


def each(function: Callable[..., Any]) -> Step:
    """Apply a function to every gradient alone."""
    return lambda params, grads: jax.tree.map(function, grads)


def stacked(function: Callable[..., Any]) -> Step:
    """Apply a function to all gradients as one batch."""

    def step(params, grads):
        leaves, tree = jax.tree.flatten(grads)
        return jax.tree.unflatten(tree, list(function(jnp.stack(leaves))))

    return step


ORTHOGONAL = {
    "contracted, one by one*": each(newton_schulz(contracted)),
    "transposed, one by one": each(newton_schulz(transposed)),
    "transposed, batches of one": each(lambda g: newton_schulz(transposed)(g[None])[0]),
    "contracted, batches of one": each(lambda g: newton_schulz(contracted)(g[None])[0]),
    "contracted, one batch": stacked(newton_schulz(contracted)),
    "contracted, mapped": stacked(
        lambda batch: jax.lax.map(newton_schulz(contracted), batch)
    ),
    "contracted, factors in bfloat16": each(newton_schulz(contracted, jnp.bfloat16)),
}


def turned(x: jax.Array) -> jax.Array:
    """Swap the last axes."""
    return jnp.swapaxes(x, -1, -2)


TALL = {
    "turned, one by one*": each(lambda g: turned(newton_schulz(contracted)(turned(g)))),
    "turned, batches of one": each(
        lambda g: turned(newton_schulz(contracted)(turned(g[None])))[0]
    ),
}


def loss(params: Any, batch: jax.Array) -> jax.Array:
    """Return the mean square of what a deep network makes of a batch."""
    for layer in params.values():
        batch = jnp.tanh(batch @ layer["kernel"])
    return jnp.mean(batch**2)


def trained(name: str) -> tuple[Any, Callable[..., Any]]:
    """Return an optimizer's init, and a train step of a batch of 32."""
    optimizer = OPTIMIZERS[name]

    def step(params, state, grads):
        batch = jnp.ones((32, grads["layer_000"]["kernel"].shape[0]))
        grads = jax.grad(loss)(params, batch)
        updates, state = optimizer.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    return optimizer.init, step


def bare(step: Step) -> tuple[Any, Callable[..., Any]]:
    """Return a step without state."""
    return lambda params: (), lambda params, state, grads: (step(params, grads), state)


def groups(width: int) -> dict[str, tuple[Any, dict[str, Any]]]:
    """Return by question the shapes and what takes turns on them."""
    names = ["stream", "optax.adagrad", "neuron_adagrad", "optax.adam", "adam_mini"]
    of = lambda steps: {name: bare(step) for name, step in steps.items()}
    low = dense(12, width, jnp.bfloat16)
    tall = {"kernel": jax.ShapeDtypeStruct((width, width // 4), jnp.float32)}
    return {
        "statistic and step in float32": (dense(12, width), of(STATISTICS)),
        "the guard of a neuron": (dense(12, width), of(GUARDS)),
        "statistic and step in bfloat16": (low, of(NARROW)),
        "Adam-mini in float32": (dense(12, width), MOMENTUM),
        "Newton-Schulz, small": (dense(24, width // 32), of(ORTHOGONAL)),
        "Newton-Schulz, large": (dense(6, width // 4), of(ORTHOGONAL)),
        "Newton-Schulz, tall": (tall, of(TALL)),
        "a whole train step": (
            dense(12, width),
            {name: trained(name) for name in names},
        ),
    }


def main(arguments: list[str] | None = None) -> None:
    """Print one table per group."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.formulations", description=__doc__
    )
    parser.add_argument("--width", type=int, default=2048, help="of 12 kernels")
    parser.add_argument("--only", help="a part of the questions")
    parser.add_argument("--seconds", type=float, default=15.0, help="for each group")
    options = parser.parse_args(arguments)
    print(itemized(header("benchmarks.formulations", arguments)))
    for question, (shapes, steps) in groups(options.width).items():
        if options.only and options.only not in question:
            continue
        print(f"## {question}\n\n{measure(question, shapes, steps, options.seconds)}")


def measure(question: str, shapes: Any, steps: dict[str, Any], seconds: float) -> str:
    """Time a group, and format one line per formulation."""
    runners, temp = {}, {}
    grads = draw(shapes, 0)
    for name, (init, step) in steps.items():
        params = draw(shapes, 1)
        state = jax.jit(init)(params)
        jitted = jax.jit(step, donate_argnums=(0, 1))
        call = jitted.lower(params, state, grads).compile()
        memory = call.memory_analysis()
        temp[name] = memory.temp_size_in_bytes if memory else 0
        runners[name] = _stepping(call, params, state, grads)
    calls = race(runners, seconds, title=question)
    first = next(iter(calls.values()))
    rows = []
    for name, took in calls.items():
        beside = compare(took, first)
        times = tuple(1e3 * value for value in beside.quartiles)
        rows.append(
            [
                *(name, f"{1e3 * beside.best:.2f}", listed(times)),
                *(f"{beside.ratio:.2f}", listed(beside.by_round), f"{temp[name]:,}"),
            ]
        )
    head = ["formulation", "min ms", "quartiles ms", "ratio of min", "by round"]
    return table([*head, "temp bytes"], rows)


def _stepping(call, params, state, grads):
    carried = [(params, state)]

    def run():
        carried[0] = jax.block_until_ready(call(*carried[0], grads))

    return run


if __name__ == "__main__":
    main()
