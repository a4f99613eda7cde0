"""Batches in which few ids are frequent and most are rare, and steps that see them."""

import jax
import jax.numpy as jnp
import numpy as np
import optax

from neuron_optax import apply_row_updates, take_rows, unique_rows

SIZE, DIM, BATCH = 200, 3, 32


def batches(steps, size=SIZE, batch=BATCH, dim=DIM, seed=0):
    """Draw ids by Zipf's law, spread over the table, and what their rows should be."""
    draw = np.random.default_rng(seed)
    ids = draw.permutation(size)[(draw.zipf(1.2, (steps, batch)) - 1) % size]
    return ids, draw.standard_normal((steps, batch, dim))


def table(size=SIZE, dim=DIM, seed=1):
    """Draw a table of rows of norm one, or so."""
    draw = np.random.default_rng(seed)
    return jnp.asarray(draw.standard_normal((size, dim)) / dim**0.5)


def loss(rows, wanted):
    """Return half the sum of the squared distances."""
    return 0.5 * jnp.sum((rows - wanted) ** 2)


def sparse_step(optimizer):
    """Return params, state, ids, wanted -> params, state, as a user writes it."""

    def step(params, state, ids, wanted):
        rows = unique_rows(ids, len(params))
        compact = take_rows(params, rows)
        grads = jax.grad(lambda c: loss(c[rows.slots], wanted))(compact)
        updates, state = optimizer.update(grads, state, compact, row_ids=rows)
        return apply_row_updates(params, updates, rows), state

    return step


def dense_step(optimizer):
    """Return the same step with a gradient as large as the table."""

    def step(params, state, ids, wanted):
        grads = jax.grad(lambda p: loss(p[ids], wanted))(params)
        updates, state = optimizer.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    return step


def trained(step, optimizer, params, data):
    """Return params and state after all steps of the data, one program for all."""

    def body(carry, batch):
        return step(optimizer)(*carry, *batch), None

    run = jax.jit(lambda p, s, d: jax.lax.scan(body, (p, s), d)[0])
    return run(params, optimizer.init(params), jax.tree.map(jnp.asarray, data))
