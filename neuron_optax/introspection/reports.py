"""A table of the learning rates of every layer, and of what was skipped and changed."""

import dataclasses
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array

from neuron_optax import strategies
from neuron_optax.core import NeuronState
from neuron_optax.introspection.rates import Factor, learning_rates
from neuron_optax.introspection.states import leaves_of
from neuron_optax.projections import ChangeState, IsolationState
from neuron_optax.trees import named_leaves

HEAD = [
    *("neurons", "least", "median", "largest"),
    *("decades", "at bound", "inactive", "skipped", "changed"),
]
MEANING = {  # of the rates of a strategy; "" for those that are not named
    "": "the step, before weight decay, is minus the rate times the direction",
    "layerwise": "the factor is the rate itself: read with a learning rate of 1",
    "layerwise_decay": "the factor is the rate itself: read with a learning rate of 1",
    "subset_norm_adam": "the step is the rate times the momentum times sqrt(1 - b2**t)",
    "nero": "the step is the rate times the gradient and the layer's first norm, projected",
    "neuron_lars": "what goes into the momentum is the rate times the gradient",
    "normuon": "relative: the layer's norm is restored after the rates, then its shape",
    "namo_d": "the rate is that of an input of a matrix, and is clamped; see namo_d",
    "muown": "keeps no rates; an Adam moves the neurons' magnitudes",
    "apollo": "the rate is that of a channel, (copies, 1, channels), growth limited",
}


class LayerRates(NamedTuple):
    """The learning rates of the neurons of one leaf, see `report`.

    Attributes:
      neurons: how many have a rate.
      least: smallest rate, in units of the parameter over those of the direction.
      median: of the rates.
      largest: largest rate.
      decades: logarithm to base 10 of the largest over the least rate that is not 0.
      at_bound: share whose factor is at ``low`` or ``high``; NaN if neither was given.
      inactive: share whose memory is 0, which of sums and running means of gradients
        says that there was no gradient yet; NaN where nothing is remembered.
      skipped: steps that neurons skipped (`isolate_nonfinite`), summed over them; NaN
        if they are not counted.
      changed: steps that changed a neuron's update (`count_changes`), summed over
        them; NaN if they are not counted.

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
            rates = (f"{rate:.1e}" for rate in (of.least, of.median, of.largest))
            shares = (_shown(share, ".1%") for share in (of.at_bound, of.inactive))
            counts = (_shown(count, ".0f") for count in (of.skipped, of.changed))
            decades = f"{of.decades:.2f}"
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
      strategy: name of the strategy, for what its rates mean, if they are not what
        multiplies the direction.
      factor: as for `learning_rates`.

    Returns:
      A `Report`, whose numbers are arrays, inside ``jit`` too; print it outside.

    Raises:
      ValueError: as `learning_rates`, or for a strategy that is not known.

    Example:
      >>> from neuron_optax import neuron_adagrad
      >>> optimizer = neuron_adagrad(0.5, high=1.0)
      >>> params = {"kernel": jnp.ones((2, 3))}
      >>> grads = {"kernel": jnp.array([[0.0, 1.0, 10.0], [0.0, 1.0, 10.0]])}
      >>> _, state = optimizer.update(grads, optimizer.init(params))
      >>> print(report(state, 0.5, high=1.0))
      path   neurons   least  median largest  decades at bound inactive skipped changed
      kernel       3 5.0e-02 5.0e-01 5.0e-01     1.00    66.7%    33.3%       -       -
      the step, before weight decay, is minus the rate times the direction
    """
    if strategy and strategy not in strategies.__all__:
        raise ValueError(f"strategy must be a name of strategies, got {strategy!r}")
    rates = learning_rates(state, learning_rate, factor=factor)
    factors = dict(named_leaves(learning_rates(state, 1.0, factor=factor)))
    bounds = [bound for bound in (low, high) if bound is not None]
    memory = leaves_of(state, NeuronState, "memory")
    skipped = leaves_of(state, IsolationState, "skipped")
    changed = leaves_of(state, ChangeState, "changed")

    def summary(path, rate):
        positive = jnp.where(rate > 0, rate, jnp.inf)
        at_bound = [factors[path] == jnp.asarray(b, rate.dtype) for b in bounds]
        return LayerRates(
            neurons=rate.size,
            least=jnp.min(rate),
            median=jnp.median(rate),
            largest=jnp.max(rate),
            decades=jnp.log10(jnp.max(rate) / jnp.min(positive)),
            at_bound=jnp.mean(sum(at_bound)) if bounds else jnp.nan,
            inactive=jnp.mean(memory[path] == 0) if path in memory else jnp.nan,
            skipped=jnp.sum(skipped.get(path, jnp.nan)),
            changed=jnp.sum(changed.get(path, jnp.nan)),
        )

    layers = {path: summary(path, rate) for path, rate in named_leaves(rates)}
    return Report(layers, MEANING.get(strategy, MEANING[""]))


def _shown(number, form):
    return format(number, form) if number == number else "-"  # not NaN
