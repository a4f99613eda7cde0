"""Compose a strategy that has no name, for items of which most are rarely seen.

AdaGrad's rate falls with the root of an item's visits; this one falls with the visits,
so that each item becomes a running mean of what was seen of it.
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax

from neuron_optax import inverse_root, mean_square, reciprocal, rms, total
from neuron_optax import scale_per_neuron as compose

ITEMS, WIDTH, STEPS, BATCH = 200, 8, 1000, 32
LEARNING_RATES = jnp.geomspace(0.03, 3, 17)  # each strategy is shown at its best one
STRATEGIES = {
    "neuron_adagrad": compose(mean_square, total(), inverse_root(1e-8)),
    "composed": compose(rms, total(), reciprocal(1e-8), direction=optax.ema(0.5)),
}

rng = np.random.default_rng(0)
chance = 1 / np.arange(1, ITEMS + 1)  # Zipf's law
items = rng.choice(ITEMS, (STEPS, BATCH), p=chance / chance.sum())
wanted = jnp.float32(rng.standard_normal((ITEMS, WIDTH)))
unit = jnp.float32(10 ** rng.uniform(-2, 2, (ITEMS, 1)))  # of each item's loss
seen = wanted[items] + rng.standard_normal((STEPS, BATCH, WIDTH), np.float32)


def train(scaled, learning_rate):
    """Return the error of the rarer half of the items, and the rate of every item."""
    optimizer = optax.chain(scaled, optax.scale_by_learning_rate(learning_rate))

    def loss(params, items, seen):
        return jnp.mean(unit[items] * (params["embedding"][items] - seen) ** 2)

    def step(carry, batch):
        params, state = carry
        updates, state = optimizer.update(jax.grad(loss)(params, *batch), state)
        return (optax.apply_updates(params, updates), state), None

    params = {"embedding": jnp.zeros((ITEMS, WIDTH))}
    start = params, optimizer.init(params)
    (params, state), _ = jax.lax.scan(step, start, (items, seen))
    factors = optax.tree.get(state, "NeuronState").rate["embedding"][:, 0]
    error = jnp.mean((params["embedding"] - wanted)[ITEMS // 2 :] ** 2)
    return error, learning_rate * factors


visits, found = np.bincount(items.ravel(), minlength=ITEMS), {}
for name, scaled in STRATEGIES.items():
    runs = jax.vmap(lambda learning_rate, of=scaled: train(of, learning_rate))
    errors, rates = jax.jit(runs)(LEARNING_RATES)
    best = errors.argmin()
    slope, _ = np.polyfit(np.log(visits), np.log(rates[best] * unit[:, 0]), 1)
    print(f"{name:14} error {errors[best]:.4f}, rates as visits to the {slope:.2f}")
    found[name] = float(errors[best]), slope
assert found["composed"][0] < 0.9 * found["neuron_adagrad"][0]
assert found["composed"][1] < -0.85 < -0.55 < found["neuron_adagrad"][1]
