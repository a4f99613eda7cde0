"""Swap Adam-mini into the ``TrainState`` of a Flax linen network that reads digits."""

import jax
import numpy as np
import optax
from flax import linen as nn
from flax.training.train_state import TrainState
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

import neuron_optax

images, labels = load_digits(return_X_y=True)
images, test_images, labels, test_labels = train_test_split(
    np.float32(images / 16), labels, stratify=labels, random_state=0
)
model = nn.Sequential([nn.Dense(64), nn.relu, nn.Dense(10)])
params = model.init(jax.random.key(0), images[:1])["params"]
neuron_optax.describe(params)
state = TrainState.create(
    apply_fn=model.apply, params=params, tx=neuron_optax.adam_mini(1e-2)
)


def loss(params):
    """Return the mean cross-entropy of all training images."""
    logits = model.apply({"params": params}, images)
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()


train_step = jax.jit(
    lambda state: state.apply_gradients(grads=jax.grad(loss)(state.params))
)
for _ in range(200):
    state = train_step(state)

logits = model.apply({"params": state.params}, test_images)
accuracy = float((logits.argmax(axis=-1) == test_labels).mean())
print(f"accuracy after {state.step} steps: {accuracy:.3f}")
assert accuracy > 0.95
