"""Who takes part: Optax's optimizers and ours, each with the centre of its rates."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import optax

import neuron_optax
from benchmarks.contenders import muon_dimensions
from benchmarks.study.records import rounded
from neuron_optax import ADAM_MINI, strategies
from neuron_optax.advice import snr, suggest_layout

STEP = 10**0.5  # between the learning rates of a grid
GRID = tuple(STEP**power for power in range(-2, 3))
AUXILIARY = 0.15  # of Muon's rate: that of Adam, for what is no hidden matrix


class Contender(NamedTuple):
    """An optimizer that takes part.

    Attributes:
      build: from a schedule of the learning rate to a transformation, without decay.
      rate: the middle of the learning rates that are tried.
      grid: the rates that are tried, over ``rate``.
      warm_up: share of the steps in which the rate rises.
      sparse: whether it moves touched rows alone.
      factors: whether the rates that its state keeps are factors of the learning rate.
      advised: whose states suggest the layout that ``build`` takes, too, if anyone's.
    """

    build: Callable[..., optax.GradientTransformation]
    rate: float
    grid: tuple[float, ...] = GRID
    warm_up: float = 0.05
    sparse: bool = False
    factors: bool = True
    advised: "Contender | None" = None

    def schedule(self, rate: Any, steps: int) -> optax.Schedule:
        """Return a rate that rises, then falls to nothing along half a cosine."""
        rising = max(round(self.warm_up * steps), 1)
        return lambda step: (
            rate
            * optax.warmup_cosine_decay_schedule(1 / rising, 1.0, rising - 1, steps)(
                step
            )
        )

    @property
    def rates(self) -> tuple[float, ...]:
        """The learning rates that are tried, of three digits."""
        return tuple(rounded(self.rate * times) for times in self.grid)


def ours(name: str, rate: float, **arguments: Any) -> Contender:
    """Return a strategy under its name."""
    build = functools.partial(getattr(strategies, name), **arguments)
    return Contender(build, rate, factors=not name.startswith("layerwise"))


def muon(schedule: optax.Schedule) -> optax.GradientTransformation:
    """Return Optax's Muon with the matrices, and Adam's rate, that our NorMuon has."""
    other = lambda step: AUXILIARY * schedule(step)
    return optax.contrib.muon(
        schedule,
        adam_learning_rate=other,
        muon_weight_dimension_numbers=muon_dimensions,
    )


def normuon(schedule: optax.Schedule, **arguments: Any) -> optax.GradientTransformation:
    """Return NorMuon with a higher rate of Adam than its authors'."""
    other = lambda step: AUXILIARY * schedule(step)
    return strategies.normuon(schedule, adam_learning_rate=other, **arguments)


OPTAX = {
    "sgd": Contender(functools.partial(optax.sgd, momentum=0.9), 0.1),
    "adam": Contender(optax.adam, 0.01),
    "adagrad": Contender(optax.adagrad, 0.1),
    "adagrad, start 0": Contender(
        functools.partial(optax.adagrad, initial_accumulator_value=0.0), 0.1
    ),
    "rmsprop": Contender(optax.rmsprop, 0.01),
    "lamb": Contender(optax.lamb, 0.02),
    "muon": Contender(muon, 0.02),
    "adafactor": Contender(optax.adafactor, 0.03),
}
OURS = {
    "weight_norm_adam": ours("weight_norm_adam", 0.01, scaling_factor=1.0),
    "neuron_adagrad": ours("neuron_adagrad", 0.1),
    "neuron_rmsprop": ours("neuron_rmsprop", 0.01),
    "adam_mini": ours("adam_mini", 0.01),
    "adam_mini, authors' partition": ours("adam_mini", 0.01, neurons=ADAM_MINI),
    "slim_adam, advised": Contender(
        lambda schedule, layout: strategies.slim_adam(schedule, neurons=layout),
        0.01,
        advised=Contender(optax.adam, 3e-3),
    ),
    "normuon": Contender(normuon, 0.02),
    "nero": ours("nero", 0.03),
    "neuron_lamb": ours("neuron_lamb", 0.02),
    "frequency_sgd": ours("frequency_sgd", 0.05, momentum=0.9),
    "frequency_adam": ours("frequency_adam", 0.01),
    "hypergradient_sgd": ours("hypergradient_sgd", 0.05, momentum=0.9),
    "hypergradient_adam": ours("hypergradient_adam", 0.01),
}
KEPT = "adam_mini, authors' partition", "slim_adam, advised"  # as their authors do
MEAN_ONE = {  # factors that would divide by the gradient: now the rate is SGD's
    **{"neuron_adagrad": 0.3, "neuron_rmsprop": 0.3},
    **{"adam_mini": 1.0, "nero": 1.0},
}
REDISTRIBUTED = {
    f"{name}, redistributed": of._replace(
        build=functools.partial(of.build, redistribute=True),
        rate=MEAN_ONE.get(name, of.rate),
    )
    for name, of in OURS.items()
    if name not in KEPT
}
EVERYONE = OPTAX | OURS | REDISTRIBUTED
TABLES = {  # of which a batch touches few rows
    "sgd": Contender(optax.sgd, 1e3, sparse=True),
    "adam": Contender(optax.adam, 0.1),
    "adam, lazy": Contender(
        lambda schedule: neuron_optax.row_chain(
            neuron_optax.lazy_rows(optax.scale_by_adam()),
            optax.scale_by_learning_rate(schedule),
        ),
        0.1,
        sparse=True,
    ),
    "adagrad": Contender(
        lambda schedule: neuron_optax.row_chain(
            neuron_optax.lazy_rows(optax.scale_by_rss(0.0, eps=1e-20)),
            optax.scale_by_learning_rate(schedule),
        ),
        0.1,
        sparse=True,
    ),
    "rmsprop": Contender(functools.partial(optax.rmsprop, eps_in_sqrt=False), 0.03),
    "lamb": Contender(optax.lamb, 0.1),
    "adafactor": Contender(optax.adafactor, 0.1),
    "row_adagrad": ours("row_adagrad", 0.1)._replace(sparse=True),
    "row_rmsprop": ours("row_rmsprop", 0.03)._replace(sparse=True),
    "row_adam_mini": ours("row_adam_mini", 0.1)._replace(sparse=True),
    "row_frequency_sgd": ours("row_frequency_sgd", 1e3)._replace(sparse=True),
    "weight_norm_adam": ours(
        "weight_norm_adam", 0.1, scaling_factor=1.0, neurons=neuron_optax.ROWS
    ),
    "neuron_lamb": ours("neuron_lamb", 0.1, neurons=neuron_optax.ROWS),
    "frequency_adam": ours("frequency_adam", 0.1, neurons=neuron_optax.ROWS),
}
BLOCKS = [f"blocks/{number}/" for number in range(5)]
LAYERS = ["embed|positions", *BLOCKS, "^norm|head"]  # of the transformer, input first


def layerwise(schedule: optax.Schedule) -> optax.GradientTransformation:
    """Return fixed shares of the rate: a tenth below, a third within, all on top."""
    share = lambda of: lambda step: of * schedule(step)
    rates = {LAYERS[0]: share(0.1), "blocks": share(0.3), LAYERS[-1]: share(1.0)}
    return strategies.layerwise(rates)


FINE_TUNERS = {name: EVERYONE[name] for name in ("sgd", "adam", "muon")} | {
    "layerwise": Contender(layerwise, 0.01, factors=False),
    **{
        f"layerwise_decay, {decay}": ours(
            "layerwise_decay", 0.01, decay=decay, layers=LAYERS
        )
        for decay in (0.9, 0.7, 0.5)
    },
    **{
        name: EVERYONE[name]
        for name in ("adam_mini", "weight_norm_adam", "neuron_rmsprop", "normuon")
    },
}


def advice(states: list[Any]) -> Any:
    """Return the layout that Adam's states in the course of a training suggest."""
    return suggest_layout([snr(state) for state in states], show=False)


def decayed(
    optimizer: optax.GradientTransformation,
    course: optax.Schedule,
    l2: float,
    decoupled: float,
) -> optax.GradientTransformation:
    """Add decay of matrices to gradients, or to steps, and nothing if it is 0.

    Args:
      optimizer: what decays beside its steps.
      course: of the learning rate, from 0 to 1: decoupled decay follows it, and does
        not depend on how high the rate is.
      l2: times the weights is added to the gradients.
      decoupled: times the course is the share that the weights shrink by.
    """
    mask = lambda params: jax.tree.map(lambda leaf: leaf.ndim > 1, params)
    members = [optimizer]
    if l2:
        members.insert(0, optax.add_decayed_weights(l2, mask))
    if decoupled:
        shrinking = lambda step: -decoupled * course(step)
        members.append(optax.add_decayed_weights(shrinking, mask))
    return optax.chain(*members) if members[1:] else optimizer
