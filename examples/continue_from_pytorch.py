"""Go on in Flax with a run begun in PyTorch, from its weights and Adam's state."""

import jax
import jax.numpy as jnp
import optax
import torch
from flax import linen
from sklearn.datasets import load_digits

from neuron_optax import interop, layerwise

jax.config.update("jax_enable_x64", True)
STEPS, RATE = 50, 1e-3
images, labels = load_digits(return_X_y=True)
images /= 16
torch.manual_seed(0)
layers = torch.nn.Linear(64, 32), torch.nn.ReLU(), torch.nn.Linear(32, 10)
theirs = torch.nn.Sequential(*layers).double()
optimizer = torch.optim.Adam(theirs.parameters(), RATE)


def train_torch() -> None:
    """Take steps on all images."""
    for _ in range(STEPS):
        optimizer.zero_grad()
        logits = theirs(torch.tensor(images))
        torch.nn.functional.cross_entropy(logits, torch.tensor(labels)).backward()
        optimizer.step()


train_torch()
ours = linen.Sequential([linen.Dense(32), linen.relu, linen.Dense(10)])
like = jax.eval_shape(ours.init, jax.random.key(0), images)["params"]
like = jax.tree.map(lambda leaf: leaf.update(dtype=jnp.float64), like)
names = {"0": "layers_0", "2": "layers_2"}
params = interop.params_from_torch(theirs, like, names)
adam = layerwise({"": RATE})  # one rate per layer, here that of torch
state = interop.state_from_torch(optimizer, theirs, adam.init(params), params, names)


def loss(params):
    """Return the mean cross-entropy of all images."""
    logits = ours.apply({"params": params}, images)
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()


@jax.jit
def train_step(params, state):
    """Take one step on all images."""
    updates, state = adam.update(jax.grad(loss)(params), state, params)
    return optax.apply_updates(params, updates), state


for _ in range(STEPS):
    params, state = train_step(params, state)
train_torch()
expected = interop.params_from_torch(theirs, like, names)
furthest = float(optax.tree.norm(optax.tree.sub(params, expected), ord="inf"))
print(f"after {STEPS} steps more, weights differ by at most {furthest:.0e}")
assert furthest < 1e-12
