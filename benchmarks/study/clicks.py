"""The recommender of ``examples/train_recommender.py``: a million items, most rare."""

import functools
import importlib
import sys
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.study.problem import Draw, Problem


def clicks(steps: int = 300) -> Problem:
    """Return the problem of foreseeing clicks, the rarest tenth measured apart.

    Tables are trained by the contender, the dense layers by Adam, as in the example.

    Args:
      steps: of a training, each on 8,192 impressions.
    """
    folder = str(Path(__file__).parents[2] / "examples")
    if folder not in sys.path:
        sys.path.insert(0, folder)
    example = importlib.import_module("train_recommender")

    def draw(seed):
        trained, validation, test = _world(example, steps, seed)
        ids, clicked = example.ids_of(trained), trained.clicks

        def batches(first, count):
            part = slice(first * example.BATCH, (first + count) * example.BATCH)
            stack = lambda column: column[part].reshape(count, example.BATCH)
            return jax.tree.map(stack, (ids, clicked))

        return Draw(example.init_model(seed), (), batches, validation, test)

    def loss(params, rest, batch):
        return example.loss(params, *batch), rest

    def measure(params, rest, part):
        ids, clicked, rare = part
        losses = example.log_losses(params, ids, clicked)
        rarest = jnp.sum(losses * rare) / jnp.maximum(jnp.sum(rare), 1)
        return {"loss": losses.mean(), "rare loss": rarest}

    def make(tables, sparse):
        make_step = example.make_sparse if sparse else example.make_dense
        optimizer, step = make_step(tables)

        def moved(carry, batch):
            params, rest, state = carry
            params, state = step(params, state, *batch)
            return (params, rest, state), None

        return optimizer, moved

    return Problem("clicks", steps, draw, loss, measure, make=make)


@functools.lru_cache(maxsize=1)
def _world(example: Any, steps: int, seed: int) -> Any:
    """Draw the traffic of a world, and halves of what is held out of it."""
    count = steps * example.BATCH
    traffic = example.zipf_traffic.draw_traffic(seed, count + example.HELD_OUT)
    trained = example.part(traffic, 0, count)
    held_out = example.part(traffic, count, None)
    (rarest, *_), _ = example.zipf_traffic.deciles(trained, held_out)
    rare = np.zeros(example.HELD_OUT, np.float32)
    rare[rarest] = 1.0
    whole = example.ids_of(held_out), held_out.clicks, rare
    half = example.HELD_OUT // 2
    at = lambda part: jax.tree.map(lambda column: column[part], whole)
    return trained, at(slice(None, half)), at(slice(half, None))
