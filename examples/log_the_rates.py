"""Log a histogram of every layer's learning rates for TensorBoard while training."""

import struct
import tempfile
from pathlib import Path

import jax
import jax.numpy as jnp
import optax
from flax import linen as nn
from sklearn.datasets import load_digits
from tensorboardX import SummaryWriter
from tensorboardX.proto.event_pb2 import Event

from neuron_optax import adam_mini
from neuron_optax.introspection import learning_rates
from neuron_optax.trees import named_leaves

LEARNING_RATE, STEPS, EVERY = 1e-2, 100, 10

images, labels = load_digits(return_X_y=True)
images, labels = jnp.float32(images / 16), jnp.asarray(labels)
model = nn.Sequential([nn.Dense(64), nn.relu, nn.Dense(10)])
params = jax.jit(model.init)(jax.random.key(0), images[:1])["params"]
optimizer = adam_mini(LEARNING_RATE)
state = optimizer.init(params)


def loss(params):
    """Return the mean cross-entropy of all images."""
    logits = model.apply({"params": params}, images)
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()


@jax.jit
def train_step(params, state):
    """Take a step, and return the logarithm of the rates that it had."""
    updates, state = optimizer.update(jax.grad(loss)(params), state, params)
    logs = jax.tree.map(jnp.log10, learning_rates(state, LEARNING_RATE))
    return optax.apply_updates(params, updates), state, logs


folder = Path(tempfile.mkdtemp(prefix="rates_"))
with SummaryWriter(folder) as writer:
    for step in range(1, STEPS + 1):
        params, state, logs = train_step(params, state)
        if step % EVERY == 0:
            for path, rates in named_leaves(logs):
                writer.add_histogram(f"log10 rate/{path}", rates, step, bins="auto")

(file,) = folder.iterdir()
data, read = file.read_bytes(), []
while data:  # length, its checksum, an event, its checksum
    end = 12 + struct.unpack_from("<Q", data)[0]
    read += [value.histo for value in Event.FromString(data[12:end]).summary.value]
    data = data[end + 4 :]
print(f"{len(read)} histograms; look at them: tensorboard --logdir {folder}")
assert len(read) == 4 * STEPS // EVERY  # two kernels and two biases
assert [of.num for of in read[-4:]] == [64, 64, 10, 10]
assert read[-1].max == rates.max()
