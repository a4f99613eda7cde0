"""Which contenders learn which problems, at full size and in a minute."""

import functools
from collections.abc import Callable, Mapping
from typing import NamedTuple

import optax

from benchmarks.study import digits, language
from benchmarks.study.clicks import clicks
from benchmarks.study.contenders import (
    EVERYONE,
    FINE_TUNERS,
    OPTAX,
    OURS,
    STEP,
    TABLES,
    Contender,
    ours,
)
from benchmarks.study.problem import Problem
from neuron_optax import (
    FLAX,
    Neurons,
    ema,
    inverse_root,
    mean_square,
    scale_per_neuron,
)

SEEDS = 3  # at the best learning rate


class Part(NamedTuple):
    """A problem, who learns it, and with how many seeds at the best rate."""

    problem: Callable[[], Problem]
    contenders: Mapping[str, Contender]
    seeds: int = SEEDS


MODELS = {"mlp": digits.mlp, "cnn": digits.cnn}
DECAYS = {
    "": {},
    ", L2": {"l2": digits.L2},
    ", decoupled": {"decoupled": digits.DECOUPLED},
}
READERS = {
    f"digits {model}{' with BatchNorm' * norm}{decay}": functools.partial(
        digits.digits,
        f"digits {model}{' with BatchNorm' * norm}{decay}",
        MODELS[model],
        norm=norm,
        **how,
    )
    for model in MODELS
    for norm in (False, True)
    for decay, how in DECAYS.items()
}


DECAYED = {
    name: EVERYONE[name]
    for name in (
        *("sgd", "adam", "weight_norm_adam", "neuron_adagrad", "neuron_rmsprop"),
        *("adam_mini", "normuon", "neuron_lamb"),
    )
}


def uncorrected(schedule: optax.Schedule) -> optax.GradientTransformation:
    """Return Adam-mini without the correction of either bias."""
    return optax.chain(
        scale_per_neuron(
            mean_square,
            ema(0.999, debias=False),
            inverse_root(1e-8),
            direction=optax.ema(0.9, debias=False),
        ),
        optax.scale_by_learning_rate(schedule),
    )


STARTS = 1e-6, 1e-4, 1e-2, 1.0  # of AdaGrad's memory, beside 0
WARM_UPS = 0.0, 0.25  # shares of the steps, beside 0.05
WARMED = {
    name: (OPTAX | OURS)[name]
    for name in ("adam", "muon", "neuron_rmsprop", "adam_mini", "normuon")
}
FACTORS = 0.0, 0.01, 0.1, 1.0, 10.0, 30.0, 100.0, 300.0, 1000.0, 10000.0
BOUNDS = {"": {}, ", high=10": {"high": 10.0}, ", rms": {"norm": "rms"}}
SENSITIVE = {
    **{
        f"neuron_adagrad, start {start:g}": ours(
            "neuron_adagrad", 0.1, initial_accumulator_value=start
        )
        for start in STARTS
    },
    "adam_mini, uncorrected": Contender(uncorrected, 0.01),
    **{
        f"{name}, warm-up {share:g}": of._replace(warm_up=share)
        for name, of in WARMED.items()
        for share in WARM_UPS
    },
    **{
        f"weight_norm_adam, factor {factor:g}{bound}": ours(
            "weight_norm_adam", 3e-3, scaling_factor=factor, **how
        )._replace(grid=(1.0,))
        for bound, how in BOUNDS.items()
        for factor in FACTORS
    },
}
ENTRIES = Neurons(output=...)  # of whose entries each has a second moment of its own
PER_ENTRY_OF = {
    "embeddings and head": "embed|positions|head",
    "attention": "attention/",
    "hidden layers": "/up/|/down/",
    "all but embeddings and head": "blocks/",
}
EXPLAINED = {
    f"adam_mini, per entry of {part}": ours(
        "adam_mini", 0.01 / STEP, neurons=FLAX.override({pattern: ENTRIES})
    )._replace(grid=(1.0,))
    for part, pattern in PER_ENTRY_OF.items()
}
NARROW = functools.partial(
    digits.digits, "narrow", digits.narrow, scaled_badly=True, steps=600
)
FULL = {
    "language": Part(language.language, EVERYONE | EXPLAINED),
    "narrow": Part(NARROW, EVERYONE | SENSITIVE),
    **{
        name: Part(problem, DECAYED if "," in name else EVERYONE)
        for name, problem in READERS.items()
    },
    "fine-tuning": Part(language.fine_tuning, FINE_TUNERS),
    "clicks": Part(clicks, TABLES),
}


def _small(part: Part, problem: Callable[[], Problem], *names: str) -> Part:
    """Return a problem of few steps, two rates, and some of the contenders."""
    chosen = {
        name: part.contenders[name]._replace(grid=part.contenders[name].grid[-2:])
        for name in names
    }
    return Part(problem, chosen, seeds=2)


TINY = language.Size(layers=1, width=16, heads=2, length=8, batch=2, measured=4)
SMOKE = {
    **{
        name: _small(
            FULL[name],
            functools.partial(READERS[name], steps=12),
            *("adam", "weight_norm_adam"),
        )
        for name in ("digits mlp with BatchNorm, L2", "digits cnn")
    },
    "narrow": _small(
        FULL["narrow"],
        functools.partial(NARROW, steps=12),
        *("adam", "adam_mini", "adam_mini, uncorrected", "adam, warm-up 0"),
        *("weight_norm_adam, factor 10", "weight_norm_adam, factor 10, high=10"),
    ),
    "language": _small(
        FULL["language"],
        functools.partial(language.language, size=TINY, steps=12),
        *("adam", "muon", "adam_mini", "adam_mini, redistributed", "normuon"),
        "slim_adam, advised",
    ),
    "fine-tuning": _small(
        FULL["fine-tuning"],
        functools.partial(language.fine_tuning, TINY._replace(layers=5), 12, before=12),
        *("adam", "layerwise", "layerwise_decay, 0.7"),
    ),
    "clicks": _small(
        FULL["clicks"],
        functools.partial(clicks, 12),
        *("sgd", "row_adagrad", "adam", "weight_norm_adam"),
    ),
}
PLANS = {"full": FULL, "smoke": SMOKE}
