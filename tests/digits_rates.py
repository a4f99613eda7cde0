"""Rates at which every strategy trains the network of ``examples/train_digits.py``.

Each lies in a range of rates, a factor of two or more wide, that all reach 95 % from
three starts. Steps without momentum may end on a worse batch: rates stay off the top.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import neuron_optax


class Row(NamedTuple):
    """How one strategy trains the digits.

    Attributes:
      rates: the arguments that are rates; all of them zero is no training.
      options: arguments off their default.
      start: turns the params into those to start from.
    """

    rates: Mapping[str, Any]
    options: Mapping[str, Any] = {}
    start: Callable[..., Any] = lambda params: params


DIGITS = {
    "layerwise": Row(
        {"learning_rates": {"hidden1": 4e-3, "hidden2": 2e-3, "output": 1e-3}}
    ),
    "layerwise_decay": Row(
        {"learning_rate": 4e-3},
        {"decay": 0.4, "layers": ("hidden1", "hidden2", "output")},
    ),
    "neuron_adagrad": Row({"learning_rate": 0.03}),
    "neuron_rmsprop": Row({"learning_rate": 1e-3}),
    "adam_mini": Row({"learning_rate": 3e-3}),
    "weight_norm_adam": Row({"learning_rate": 3e-3}),
    "rowwise_adagrad": Row({"learning_rate": 0.03}),
    "slim_adam": Row({"learning_rate": 3e-3}),
    "subset_norm_adam": Row({"learning_rate": 0.02}),
    "neuron_sgd": Row({"learning_rate": 1e-3}),
    "nero": Row({"learning_rate": 0.01}, start=neuron_optax.project_neurons),
    "neuron_lars": Row({"learning_rate": 0.5}),
    "neuron_lamb": Row({"learning_rate": 1.5e-3}),
    "frequency_sgd": Row({"learning_rate": 0.1}),
    "frequency_adam": Row({"learning_rate": 3e-3}),
    "hypergradient_sgd": Row({"learning_rate": 5e-3}),
    "hypergradient_adam": Row({"learning_rate": 1e-3}),
    "delta_bar_delta": Row({"learning_rate": 0.2}),
    "normuon": Row({"learning_rate": 0.01}),
    "namo_d": Row({"learning_rate": 0.01}),
    "muown": Row({"learning_rate": 3e-3}),
    "apollo": Row({"learning_rate": 0.01}),
}
