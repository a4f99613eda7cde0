"""Python's standard library, byte by byte: a transformer learns it, then fine-tunes."""

import functools
import sysconfig
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from benchmarks.study.problem import Draw, Problem, cross_entropy, split

VOCABULARY = 128  # of ASCII; other bytes are read as "?"
HELD_OUT = 8  # of as many files, one validates and one tests
LEARNED, FINE_TUNED = "*.py", "asyncio/*.py"  # of the standard library
PRETRAINING = 3e-3  # Adam's learning rate


class Size(NamedTuple):
    """How large the model is and what it reads.

    Attributes:
      layers: of attention and hidden neurons, four times the width.
      width: of the residual stream.
      heads: of attention.
      length: bytes that are foreseen in a sequence.
      batch: sequences of a step.
      measured: sequences to validate on; four times as many are for the test.
    """

    layers: int = 5
    width: int = 128
    heads: int = 4
    length: int = 64
    batch: int = 16
    measured: int = 64


MILLION = Size()  # parameters


class Block(nnx.Module):
    """Attention to what was read, then a layer of hidden neurons."""

    def __init__(self, size: Size, *, rngs: nnx.Rngs):
        self.attention_norm = nnx.RMSNorm(size.width, rngs=rngs)
        self.attention = nnx.MultiHeadAttention(
            num_heads=size.heads,
            in_features=size.width,
            use_bias=False,
            decode=False,
            keep_rngs=False,
            rngs=rngs,
        )
        self.mlp_norm = nnx.RMSNorm(size.width, rngs=rngs)
        self.up = nnx.Linear(size.width, 4 * size.width, rngs=rngs)
        self.down = nnx.Linear(4 * size.width, size.width, rngs=rngs)

    def __call__(self, x, mask):
        """Add to every position what attention and hidden neurons make of it."""
        x = x + self.attention(self.attention_norm(x), mask=mask)
        return x + self.down(nnx.gelu(self.up(self.mlp_norm(x))))


class Transformer(nnx.Module):
    """A language model of bytes."""

    def __init__(self, size: Size, *, rngs: nnx.Rngs):
        small = nnx.initializers.normal(0.02)
        embed = functools.partial(nnx.Embed, embedding_init=small, rngs=rngs)
        self.embed = embed(VOCABULARY, size.width)
        self.positions = embed(size.length, size.width)
        self.blocks = nnx.List([Block(size, rngs=rngs) for _ in range(size.layers)])
        self.norm = nnx.RMSNorm(size.width, rngs=rngs)
        self.head = nnx.Linear(size.width, VOCABULARY, use_bias=False, rngs=rngs)

    def __call__(self, text):
        """Return the logits of the byte after each."""
        x = self.embed(text) + self.positions(jnp.arange(text.shape[1]))[None]
        mask = nnx.make_causal_mask(text)
        for block in self.blocks:
            x = block(x, mask)
        return self.head(self.norm(x))


@functools.cache
def texts(pattern: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the bytes of files that are learned, that validate, and that test."""
    library = Path(sysconfig.get_path("stdlib"))
    files = sorted(library.glob(pattern), key=lambda path: path.name)
    held_out = [number % HELD_OUT for number in range(len(files))]

    def joined(wanted):
        chosen = zip(files, held_out, strict=True)
        said = [path.read_text("utf-8") for path, part in chosen if wanted(part)]
        return np.frombuffer("\n".join(said).encode("ascii", "replace"), np.uint8)

    return (
        joined(lambda of: of > 1),
        joined(lambda of: of == 0),
        joined(lambda of: of == 1),
    )


def pieces(text: np.ndarray, rng: np.random.Generator, count: int, length: int) -> Any:
    """Draw pieces of a text, one byte longer than what is foreseen of each."""
    starts = rng.integers(len(text) - length, size=count)
    return text[starts[:, None] + np.arange(length + 1)].astype(np.int32)


def language(
    name: str = "language",
    size: Size = MILLION,
    steps: int = 400,
    pattern: str = LEARNED,
    start: Callable[[int], Any] | None = None,
) -> Problem:
    """Return the problem of foreseeing the next byte of Python.

    Args:
      name: of the records.
      size: of the model and its batches.
      steps: of a training.
      pattern: which files of the standard library are read.
      start: from a seed to the params at the start; ``None`` for random ones.
    """
    model = lambda seed: Transformer(size, rngs=nnx.Rngs(seed))
    _, rest, join = split(model(0))

    def draw(seed):
        learned, validating, testing = texts(pattern)
        params = start(seed) if start else split(model(seed))[0]
        rng = np.random.default_rng(seed)
        count = steps * size.batch
        tokens = pieces(learned, rng, count, size.length)
        tokens = tokens.reshape(steps, size.batch, -1)
        fixed = np.random.default_rng(0)  # the same for every seed
        held_out = [
            pieces(text, fixed, times * size.measured, size.length)
            for text, times in ((validating, 1), (testing, 4))
        ]
        batches = lambda first, count: tokens[first : first + count]
        return Draw(params, rest, batches, *held_out)

    def loss(params, rest, batch):
        return cross_entropy(join(params, rest)(batch[:, :-1]), batch[:, 1:]), rest

    def measure(params, rest, part):
        parts = part.reshape(-1, size.measured, part.shape[-1])
        means = jax.lax.map(lambda part: loss(params, rest, part)[0], parts)
        return {"loss": means.mean()}

    return Problem(name, steps, draw, loss, measure)


def fine_tuning(size: Size = MILLION, steps: int = 150, before: int = 400) -> Problem:
    """Return the problem of learning another part of the library, starting from one.

    Args:
      size: of the model and its batches.
      steps: of the fine-tuning.
      before: steps of Adam on the first part, whose end is the start for every seed.
    """
    start = lambda seed: pretrained(size, before)
    return language("fine-tuning", size, steps, FINE_TUNED, start)


@functools.cache
def pretrained(size: Size, steps: int) -> Any:
    """Return the params that Adam makes of the first seed's."""
    problem = language("pretraining", size, steps)
    drawn = problem.draw(0)
    adam = optax.adam(optax.cosine_decay_schedule(PRETRAINING, problem.steps))

    @jax.jit
    def train(params, batches):
        def step(carry, batch):
            params, state = carry
            grads = jax.grad(lambda at: problem.loss(at, drawn.rest, batch)[0])(params)
            updates, state = adam.update(grads, state, params)
            return (optax.apply_updates(params, updates), state), None

        return jax.lax.scan(step, (params, adam.init(params)), batches)[0][0]

    return jax.device_get(train(drawn.params, drawn.batches(0, problem.steps)))
