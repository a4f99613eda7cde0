"""A layout that shares second moments where their signal to noise allows it."""

import dataclasses
import math
import re
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np

from neuron_optax.advice.ratios import SignalToNoise, count, granularities, snr, table
from neuron_optax.axes import FLAX, Layout, Neurons
from neuron_optax.numerics import require_within
from neuron_optax.strategies.alias import NeuronsLike
from neuron_optax.trees import PART


def suggest_layout(
    second_moment: Any,
    neurons: NeuronsLike = FLAX,
    cutoff: float | int = 1.0,
    show: bool = True,
) -> Layout:
    """Return a layout that shares second moments where their ratio allows it.

    Every leaf has the fewest numbers whose ratio reaches the cutoff, of as few those of
    the highest ratio; if none does, or it has no ratios, one per entry.

    Args:
      second_moment: as of `snr`; best several states from the course of training.
      neurons: as of `snr`; they remain the rules of leaves not in ``second_moment``.
      cutoff: least signal-to-noise ratio of entries that share a number, 0 or more.
      show: print the ratios, the choice and the bytes that it saves.

    Returns:
      Those ``neurons``, preceded by a rule for each path, that do not say
      ``reduce_over``: for `slim_adam` or `adam_mini` of a tree of the same paths.

    Raises:
      TypeError: as `snr`, or if ``cutoff`` is no number.
      ValueError: as `snr`; if ``cutoff`` is negative or all that could be shared zero.

    Note:
      Bytes are those of the whole state, Adam's two moments taken to be of one dtype.
      `slim_adam` stores a rate beside every number: one per entry costs more than in
      Adam, and as much with ``store_rate=False`` of `scale_per_neuron`, printed last.

    Example:
      >>> kernel = jnp.outer(jnp.array([1.0, 1.1, 1.2]), jnp.array([1.0, 50.0]))
      >>> layout = suggest_layout({"kernel": kernel, "bias": jnp.ones(2)})
      path    shape   per neuron  per input  per head  per layer  one per  saved
      bias    (2,)    -           -          -         -          entry    -8
      kernel  (3, 2)  181         1.08       -         1.07       layer    16
      saves 4 of 68 bytes of Adam's state (5.9%), 16 (23.5%) without stored rates
      >>> layout.axes("kernel", (3, 2)).numbers
      (1, 1)
    """
    require_within("cutoff", cutoff, 0)
    found = snr(second_moment, neurons)
    ratios = [ratio for of in found.ratios.values() for ratio in of.values()]
    if ratios and all(map(math.isnan, ratios)):
        raise ValueError("second_moment must be of a trained state, got only zeros")
    chosen = _choose(found, cutoff)
    if show:
        _report(found, chosen)
    rules = {f"^{re.escape(_name(path))}$": of for path, (_, of) in chosen.items()}
    return dataclasses.replace(found.layout.override(rules), reduce_over=None)


def _choose(found: SignalToNoise, cutoff: Any) -> dict[str, tuple[str, Neurons]]:
    """Return what has one number in each leaf, by name and as neurons."""
    chosen, ratios = {}, found.ratios
    for path, axes in found.layout.resolve(found.leaves).items():
        parts = [_name(path) + of for of in ("", "/real", "/imaginary")]  # one rule
        ways = [(math.prod(axes.shape), 0, "entry", Neurons(..., axes.whole.stack))]
        for way, neurons in granularities(axes).items():
            least = np.fmin.reduce([ratios[of][way] for of in parts if of in ratios])
            if least >= cutoff:
                ways.append((count(neurons, axes.shape), -least, way, neurons))
        chosen[path] = min(ways, key=lambda way: way[:2])[2:]
    return chosen


def _name(path: str) -> str:
    return re.sub(PART, "", path)


def _report(found: SignalToNoise, chosen: Mapping[str, tuple[str, Neurons]]) -> None:
    """Print the ratios, what follows from them, and the bytes of a state."""
    cells, adam, stored, alone = [("one per", "saved")], 4, -4, -4
    for path, leaf in found.leaves.items():
        way, neurons = chosen[path]
        full = leaf.size * leaf.dtype.itemsize
        real = jnp.promote_types(jnp.finfo(leaf.dtype).dtype, jnp.float32)
        shared = count(neurons, leaf.shape) * real.itemsize
        saved = full - 2 * shared  # a number and its rate
        cells.append((way, f"{saved:,}"))
        adam, stored, alone = adam + 2 * full, stored + saved, alone + full - shared
    print(table(found, cells))
    print(
        f"saves {stored:,} of {adam:,} bytes of Adam's state ({stored / adam:.1%}), "
        f"{alone:,} ({alone / adam:.1%}) without stored rates"
    )
