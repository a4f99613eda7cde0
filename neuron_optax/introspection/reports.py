"""A table of the learning rates of every layer, and of what was skipped and changed."""

import dataclasses
import functools
from collections.abc import Iterable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import PartitionSpec
from jaxtyping import Array

from neuron_optax import strategies
from neuron_optax.core import NeuronState
from neuron_optax.introspection.rates import Factor, has_rates, learning_rates
from neuron_optax.introspection.states import leaves_of
from neuron_optax.projections import ChangeState, IsolationState
from neuron_optax.trees import named_leaves

NAMED = [
    name
    for name in strategies.__all__
    if name.islower() and not name.startswith("scale_")
]
HEAD = [
    *("neurons", "least", "median", "largest"),
    *("decades", "at bound", "inactive", "skipped", "changed"),
]
STEP = "the step, before weight decay, is minus the rate times the direction"
MEANING = {  # of the rates of a strategy where that is not so; "" for one not named
    "": "learning rate times the factor last applied; strategy= says what that is",
    "layerwise": "the factor is the rate itself: read with a learning rate of 1",
    "layerwise_decay": "the factor is the rate itself: read with a learning rate of 1",
    "subset_norm_adam": "the step is the rate times the momentum times sqrt(1 - b2**t)",
    "nero": "the step is the rate times gradient and the layer's first norm, projected",
    "neuron_lars": "what goes into the momentum is the rate times the gradient",
    "normuon": "relative: the layer's norm is restored after the rates, then its shape",
    "namo_d": "the rate is that of an input of a matrix, and is clamped; see namo_d",
    "muown": "keeps no rates; an Adam moves the neurons' magnitudes",
    "apollo": "the rate is that of a channel, (copies, 1, channels), growth limited",
}


class LayerRates(NamedTuple):
    """The learning rates of the neurons of one leaf, see `report`.

    Attributes:
      neurons: how many there are.
      least: smallest rate, in units of the parameter over those of the direction; NaN
        if they have none, as the next three.
      median: of the rates.
      largest: largest rate.
      decades: logarithm to base 10 of the largest over the least factor that is not 0.
      at_bound: share whose factor is at ``low`` or ``high``; NaN if neither was given.
      inactive: share whose memory is 0, which of sums and running means of gradients
        says that there was no gradient yet; NaN where nothing is remembered.
      skipped: steps that neurons skipped (`isolate_nonfinite`), summed over them and
        over all that count; NaN if nothing does.
      changed: steps that changed a neuron's update (`count_changes`), likewise.

    Example:
      >>> LayerRates(2, 0.1, 0.2, 1.0, 1.0, 0.5, 0.0, 3, 0).decades
      1.0
    """

    neurons: Any
    least: Any
    median: Any
    largest: Any
    decades: Any
    at_bound: Any
    inactive: Any
    skipped: Any
    changed: Any


@functools.partial(
    jax.tree_util.register_dataclass, data_fields=["layers"], meta_fields=["meaning"]
)
@dataclasses.dataclass(frozen=True)
class Report:
    """`LayerRates` by the path of their leaf; printed as a table.

    Attributes:
      layers: one `LayerRates` for each leaf with rates.
      meaning: what the rates are.

    Example:
      >>> of = LayerRates(2, 0.1, 0.2, 1.0, 1.0, 0.5, 0.0, jnp.nan, 4)
      >>> print(Report({"kernel": of}, "rates"))
      path   neurons   least  median largest  decades at bound inactive skipped changed
      kernel       2 1.0e-01 2.0e-01 1.0e+00     1.00    50.0%     0.0%       -       4
      rates
    """

    layers: dict[str, LayerRates]
    meaning: str = MEANING[""]

    def __str__(self):
        width = max(map(len, self.layers), default=4)
        row = f"{{:{width}}}" + 4 * " {:>7}" + 3 * " {:>8}" + 2 * " {:>7}"
        lines = [row.format("path", *HEAD)]
        for path, of in self.layers.items():
            rates = (_shown(rate, ".1e") for rate in (of.least, of.median, of.largest))
            shares = (_shown(share, ".1%") for share in (of.at_bound, of.inactive))
            counts = (_shown(count, ".0f") for count in (of.skipped, of.changed))
            decades = _shown(of.decades, ".2f")
            lines.append(
                row.format(path, of.neurons, *rates, decades, *shares, *counts)
            )
        return "\n".join([*lines, self.meaning])


def report(
    state: Any,
    learning_rate: optax.ScalarOrSchedule | None = None,
    low: float | Array | None = None,
    high: float | Array | None = None,
    *,
    strategy: str = "",
    factor: Factor | None = None,
) -> Report:
    """Summarise the learning rates of every leaf, and what was skipped and changed.

    Args:
      state: as for `learning_rates`.
      learning_rate: as for `learning_rates`.
      low: least factor that the strategy was given, if any.
      high: largest factor that the strategy was given, if any.
      strategy: name of the strategy, for what its rates mean: minus the rate times the
        direction is the step of most, not of all (``MEANING``).
      factor: as for `learning_rates`.

    Returns:
      A `Report`, whose numbers are arrays, inside ``jit`` too; print it outside. Its
      columns are the attributes of `LayerRates`.

    Raises:
      ValueError: as `learning_rates`, or for a strategy that is not known.

    Example:
      >>> from neuron_optax import neuron_adagrad
      >>> optimizer = neuron_adagrad(0.5, high=1.0)
      >>> params = {"kernel": jnp.ones((2, 3))}
      >>> grads = {"kernel": jnp.array([[0.0, 1.0, 10.0], [0.0, 1.0, 10.0]])}
      >>> _, state = optimizer.update(grads, optimizer.init(params))
      >>> print(report(state, 0.5, high=1.0, strategy="neuron_adagrad"))
      path   neurons   least  median largest  decades at bound inactive skipped changed
      kernel       3 5.0e-02 5.0e-01 5.0e-01     1.00    66.7%    33.3%       -       -
      the step, before weight decay, is minus the rate times the direction
    """
    if strategy and strategy not in NAMED:
        raise ValueError(f"strategy must be one of {NAMED}, got {strategy!r}")
    skipped = _sums(leaves_of(state, IsolationState, "skipped"))
    changed = _sums(leaves_of(state, ChangeState, "changed"))
    memory = dict(reversed(list(leaves_of(state, NeuronState, "memory"))))
    counted = {**changed, **skipped}
    read = lambda base: dict(
        named_leaves(learning_rates(state, base, factor=factor))
        if has_rates(state, factor) or not counted
        else ()
    )
    rates, factors = read(learning_rate), read(1.0)
    bounds = [bound for bound in (low, high) if bound is not None]

    def summary(path):
        blank = jnp.full(np.shape(counted.get(path, 0.0)), jnp.nan)
        return LayerRates(
            *_spread(rates.get(path, blank), factors.get(path, blank)),
            at_bound=_share_at(factors.get(path, blank), bounds),
            inactive=jnp.mean(memory[path] == 0) if path in memory else jnp.nan,
            skipped=jnp.sum(skipped.get(path, jnp.nan)),
            changed=jnp.sum(changed.get(path, jnp.nan)),
        )

    layers = {path: summary(path) for path in sorted({**rates, **counted})}
    return Report(layers, MEANING.get(strategy, STEP))


def _spread(rate: Any, factor: Any) -> tuple[Any, ...]:
    """Return count, least, median, largest and decades; NaN of a leaf without any."""
    if not np.size(rate):
        return (0, *[jnp.nan] * 4)
    rate, factor = _whole(rate), _whole(factor)
    positive = jnp.where(factor > 0, factor, jnp.inf)
    decades = jnp.log10(jnp.max(factor) / jnp.min(positive))
    decades = jnp.where(jnp.max(factor) > 0, decades, jnp.nan)
    return rate.size, jnp.min(rate), jnp.median(rate), jnp.max(rate), decades


def _share_at(factor: Any, bounds: list[Any]) -> Any:
    """Return the share of factors that are at one of the bounds, NaN if unknown."""
    if not bounds or not np.size(factor):
        return jnp.nan
    at = [factor == jnp.asarray(bound, factor.dtype) for bound in bounds]
    known = jnp.where(jnp.any(jnp.isnan(factor)), jnp.nan, 1.0)
    return known * jnp.mean(functools.reduce(jnp.logical_or, at))


def _whole(numbers: Any) -> jax.Array:
    """Return numbers of which every device has all: a median sorts them."""
    numbers = jnp.asarray(numbers)
    explicit = jax.typeof(numbers).sharding.mesh.explicit_axes
    return jax.sharding.reshard(numbers, PartitionSpec()) if explicit else numbers


def _sums(counts: Iterable[tuple[str, Any]]) -> dict[str, Any]:
    """Add up counts of the same path."""
    total = {}
    for path, count in counts:
        total[path] = total[path] + count if path in total else count
    return total


def _shown(number, form):
    return format(number, form) if number == number else "-"  # not NaN
