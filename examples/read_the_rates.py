"""Read the learning rate of every neuron while a network learns, and draw them.

In the first layer pixels are the neurons: at the border they seldom have gradients.
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn
from sklearn.datasets import load_digits

from neuron_optax import FLAX, Neurons, neuron_adagrad, touched
from neuron_optax.introspection import learning_rates, report
from neuron_optax.plot import plot_frequency, plot_neurons, plot_rates, save

LEARNING_RATE, STEPS, BATCH, HIGH = 0.05, 200, 8, 1e3
PIXELS = "layers_0/kernel"  # inputs x outputs

images, labels = load_digits(return_X_y=True)
images, labels = jnp.float32(images / 16), jnp.asarray(labels)
model = nn.Sequential([nn.Dense(64), nn.relu, nn.Dense(32), nn.relu, nn.Dense(10)])
params = jax.jit(model.init)(jax.random.key(0), images[:1])["params"]
by_pixel = FLAX.override({PIXELS: Neurons(output=(0,))})
optimizer = neuron_adagrad(LEARNING_RATE, neurons=by_pixel, high=HIGH)
state = optimizer.init(params)


def loss(params, batch):
    """Return the mean cross-entropy of a batch."""
    logits = model.apply({"params": params}, images[batch])
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels[batch]).mean()


@jax.jit
def train_step(params, state, batch):
    """Take a step; return also the rates, and which neurons had a gradient."""
    grads = jax.grad(loss)(params, batch)
    updates, state = optimizer.update(grads, state, params)
    rates = learning_rates(state, LEARNING_RATE)
    fan_in = lambda rate: tuple(a for a, size in enumerate(rate.shape) if size == 1)
    active = jax.tree.map(lambda g, rate: touched(g, None, fan_in(rate)), grads, rates)
    return optax.apply_updates(params, updates), state, (rates, active)


seen = []
for batch in np.random.default_rng(0).integers(len(images), size=(STEPS, BATCH)):
    params, state, new = train_step(params, state, batch)
    seen.append(new)
history, active = zip(*seen, strict=True)
frequency = jax.tree.map(lambda *steps: np.mean(steps, axis=0), *active)
print(report(state, LEARNING_RATE, high=HIGH))
save(plot_rates(history, layers="kernel"), "rates_over_training.png")
save(plot_neurons(history, PIXELS), "rates_heat_map.png")
figure = plot_frequency(history[-1], frequency, layers="kernel")
save(figure, "rates_by_frequency.png")
rates, share = (tree["layers_0"]["kernel"] for tree in (history[-1], frequency))
often, seldom = (np.median(rates[of]) for of in (share > 0.9, share < 0.1))
print(f"median rate of a pixel: {often:.1e} often inked, {seldom:.1e} seldom")
assert seldom > 10 * often
