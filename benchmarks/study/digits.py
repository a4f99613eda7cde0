"""Handwritten digits: an MLP, a convolutional network, a deep narrow MLP."""

import functools
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import nnx
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

from benchmarks.study.problem import Draw, Problem, cross_entropy, rest_of, split

BATCH = 64
L2, DECOUPLED = 1e-3, 0.003  # fixed, whatever the optimizer and its rate
DECADES = -2.0, 1.0  # of the sizes of badly scaled inputs
RARE = 0.01  # a neuron active on fewer images than this share is rarely active


class Dense(nnx.Module):
    """Hidden layers of neurons that rectify, and an output of ten."""

    def __init__(self, widths: list[int], norm: bool, *, rngs: nnx.Rngs):
        sizes = list(zip([64, *widths[:-1]], widths, strict=True))
        init = nnx.initializers.he_normal()
        layer = lambda i, o: nnx.Linear(i, o, kernel_init=init, rngs=rngs)
        self.hidden = nnx.List([layer(*size) for size in sizes])
        self.norms = nnx.List(
            [nnx.BatchNorm(width, rngs=rngs) for width in widths] if norm else []
        )
        self.output = nnx.Linear(widths[-1], 10, rngs=rngs)

    def activations(self, images):
        """Return what each hidden layer makes of the images."""
        outputs = [images]
        for number, layer in enumerate(self.hidden):
            hidden = layer(outputs[-1])
            hidden = self.norms[number](hidden) if self.norms else hidden
            outputs.append(nnx.relu(hidden))
        return outputs[1:]

    def __call__(self, images):
        """Return the logits of the ten digits."""
        return self.output(self.activations(images)[-1])


class Convolutional(nnx.Module):
    """Two convolutions, the second of stride two, and a dense layer."""

    def __init__(self, norm: bool, *, rngs: nnx.Rngs):
        self.first = nnx.Conv(1, 8, (3, 3), rngs=rngs)
        self.second = nnx.Conv(8, 16, (3, 3), strides=2, rngs=rngs)
        self.output = nnx.Linear(256, 10, rngs=rngs)
        self.norms = nnx.List(
            [nnx.BatchNorm(width, rngs=rngs) for width in (8, 16)] if norm else []
        )

    def activations(self, images):
        """Return what each convolution makes of the images."""
        outputs = [images.reshape(-1, 8, 8, 1)]
        for number, layer in enumerate((self.first, self.second)):
            hidden = layer(outputs[-1])
            hidden = self.norms[number](hidden) if self.norms else hidden
            outputs.append(nnx.relu(hidden))
        return outputs[1:]

    def __call__(self, images):
        """Return the logits of the ten digits."""
        last = self.activations(images)[-1]
        return self.output(last.reshape(len(images), -1))


def mlp(norm: bool, rngs: nnx.Rngs) -> nnx.Module:
    """Return two hidden layers."""
    return Dense([64, 32], norm, rngs=rngs)


def cnn(norm: bool, rngs: nnx.Rngs) -> nnx.Module:
    """Return two convolutions and a dense layer."""
    return Convolutional(norm, rngs=rngs)


def narrow(norm: bool, rngs: nnx.Rngs) -> nnx.Module:
    """Return eight hidden layers of sixteen neurons."""
    return Dense([16] * 8, norm, rngs=rngs)


@functools.cache
def images(scaled_badly: bool) -> list[tuple[Any, Any]]:
    """Return images and labels for training, validation and test."""
    pixels, labels = load_digits(return_X_y=True)
    pixels = (pixels / 16).astype(np.float32)
    if scaled_badly:
        sizes = np.random.default_rng(0).uniform(*DECADES, pixels.shape[1])
        pixels = (pixels * 10**sizes).astype(np.float32)
    fair = functools.partial(train_test_split, random_state=0)
    pixels, other, labels, theirs = fair(pixels, labels, test_size=600, stratify=labels)
    validation, test, its, tests = fair(other, theirs, test_size=300, stratify=theirs)
    return [(pixels, labels), (validation, its), (test, tests)]


def digits(
    name: str,
    model: Any,
    *,
    norm: bool = False,
    scaled_badly: bool = False,
    steps: int = 300,
    l2: float = 0.0,
    decoupled: float = 0.0,
) -> Problem:
    """Return the problem of reading digits with a model.

    Args:
      name: of the records.
      model: makes it, from whether its batches are normalised, and streams of keys.
      norm: whether they are.
      scaled_badly: multiply every pixel by a number of its own, of several decades.
      steps: of a training, each on 64 images.
      l2: see `Problem`.
      decoupled: see `Problem`.
    """
    _, _, join = split(model(norm, nnx.Rngs(0)))

    def draw(seed):
        (pixels, labels), *others = images(scaled_badly)
        params, rest, _ = split(model(norm, nnx.Rngs(seed)))
        epochs = -(-steps * BATCH // len(labels))
        rng = np.random.default_rng(seed)
        order = np.concatenate([rng.permutation(len(labels)) for _ in range(epochs)])
        order = order[: steps * BATCH].reshape(steps, BATCH)
        at = lambda first, count: order[first : first + count]
        batches = lambda *part: (pixels[at(*part)], labels[at(*part)])
        return Draw(params, rest, batches, *others)

    def loss(params, rest, batch):
        network = join(params, rest)
        network.train()
        value = cross_entropy(network(batch[0]), batch[1])
        return value, rest_of(network)

    def measure(params, rest, part):
        network = join(params, rest)
        network.eval()
        logits = network(part[0])
        active = [
            jnp.mean(layer > 0, axis=tuple(range(layer.ndim - 1)))
            for layer in network.activations(part[0])
        ]
        return {
            "loss": cross_entropy(logits, part[1]),
            "accuracy": jnp.mean(logits.argmax(axis=-1) == part[1]),
            "rarely active": jnp.mean(jnp.concatenate(active) < RARE),
        }

    return Problem(name, steps, draw, loss, measure, l2, decoupled)
