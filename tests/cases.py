"""The table of strategies: oracle, arguments off their default, what each promises.

A new strategy is a row here, an oracle under ``reference`` and its composition.
"""

import dataclasses
import importlib
from collections.abc import Callable, Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np
import optax

import neuron_optax

STEPS = 20
SCHEDULE = lambda step: jnp.where(step < 7, 0.2, 0.05)  # exact, jitted or not
SLOW = {"learning_rate": lambda step: jnp.where(step < 7, 2e-3, 5e-4)}

# Flax layout; torch has the last axis first. A wrong axis fits the square kernel.
SHAPES = {
    "Dense_0": {"kernel": (3, 4), "bias": (4,)},
    "Dense_1": {"kernel": (4, 4), "bias": (4,)},
    "Conv_0": {"kernel": (3, 2, 2, 5), "bias": (5,)},
}


@dataclasses.dataclass(frozen=True)
class Case:
    """One strategy; ``build(learning_rate, neurons=, bias=, **hyperparameters)``.

    Attributes:
      build: the strategy.
      oracle: ``module:Class`` under ``tests.reference``.
      variants: arguments off their default, by name; given to both sides.
      state: field of our state to key of the oracle's.
      bias: whose rate a bias uses by default.
      learning_rate: small enough for gradients that span six decades.
      isolated: no neuron moves another, bit for bit.
      coupled: variants in which neurons do move one another, by the mean of a layer.
      permutation: permuting neurons permutes updates, bit for bit where isolated.
      transposes: transposing a kernel and its layout transposes the update.
      per_entry: the known optimizer it is where every entry is a neuron, and with
        what off its default.
      needs_params: whether ``update`` needs the weights.
      alias: whether it is a public name, not a chain made here.
    """

    build: Callable[..., optax.GradientTransformationExtraArgs]
    oracle: str
    variants: Mapping[str, Mapping[str, Any]]
    state: Mapping[str, str]
    bias: str = "own"
    learning_rate: float = 0.1
    isolated: bool = True
    coupled: frozenset[str] = frozenset({"redistribute", "redistribute_bounds"})
    permutation: bool = True
    transposes: bool = True
    per_entry: tuple[Callable[..., Any], Mapping[str, Any]] | None = None
    needs_params: bool = False
    alias: bool = True


def weight_norm_sgd(
    learning_rate, scaling_factor=0.01, momentum=0.0, weight_decay=0.0, **options
):
    return optax.chain(
        optax.trace(momentum),
        neuron_optax.scale_by_weight_norm(scaling_factor, **options),
        optax.add_decayed_weights(weight_decay),
        optax.scale_by_learning_rate(learning_rate),
    )


COMMON = {
    "default": {},
    "schedule": {"learning_rate": SCHEDULE},
    "weight_decay": {"weight_decay": 0.1},
}
SPREAD = {  # the factors span 1e-3 to 1e3
    "bounds": {"low": 0.1, "high": 10.0},
    "redistribute": {"redistribute": True},
    "redistribute_bounds": {"redistribute": True, "low": 0.1, "high": 0.9},
}
NORMS = {  # the factors lie around 1.02
    "bounds": {"low": 1.015, "high": 1.02},
    "redistribute": {"redistribute": True},
    "scaling_factor": {"scaling_factor": 0.5},
    "norm": {"norm": "rms"},
    "bias": {"bias": "own"},
}

CASES = {
    "neuron_adagrad": Case(
        neuron_optax.neuron_adagrad,
        "neuron_adagrad:NeuronAdagrad",
        {
            **COMMON,
            **SPREAD,
            "initial": {"initial_accumulator_value": 0.5},
            "eps": {"eps": 0.1},
        },
        {"memory": "acc", "rate": "rate"},
        per_entry=(  # Optax has its eps inside the root: make both negligible
            lambda learning_rate: optax.adagrad(learning_rate, 0.0, 1e-30),
            {"eps": 1e-30},
        ),
    ),
    "neuron_rmsprop": Case(
        neuron_optax.neuron_rmsprop,
        "neuron_rmsprop:NeuronRMSprop",
        {**COMMON, **SPREAD, "decay": {"decay": 0.5}, "eps": {"eps": 0.1}},
        {"memory": "v", "rate": "rate"},
        per_entry=(
            lambda learning_rate: optax.rmsprop(learning_rate, eps_in_sqrt=False),
            {},
        ),
    ),
    "adam_mini": Case(
        neuron_optax.adam_mini,
        "adam_mini:AdamMini",
        {
            **COMMON,
            **SPREAD,
            "b1": {"b1": 0.0},
            "b2": {"b2": 0.5},
            "eps": {"eps": 0.1},
        },
        {"memory": "v", "rate": "rate", "ema": "m"},
        per_entry=(optax.adam, {}),
    ),
    "weight_norm_adam": Case(
        neuron_optax.weight_norm_adam,
        "weight_norm_adam:WeightNormAdam",
        {
            **COMMON,
            **NORMS,
            "b1": {"b1": 0.0},
            "b2": {"b2": 0.5},
            "eps": {"eps": 0.1},
        },
        {"rate": "rate", "mu": "m", "nu": "v"},
        bias="kernel",
        needs_params=True,
    ),
    "weight_norm_sgd": Case(
        weight_norm_sgd,
        "weight_norm_sgd:WeightNormSGD",
        {**COMMON, **NORMS, "schedule": SLOW, "momentum": {"momentum": 0.9}},
        {"rate": "rate", "trace": "buf"},
        bias="kernel",
        learning_rate=1e-3,
        alias=False,
        needs_params=True,
    ),
}


def variants(names=None):
    """List (case, hyperparameters) with ids, all or those named."""
    return {
        f"{case_name}-{name}": (case, dict(changed))
        for case_name, case in CASES.items()
        for name, changed in case.variants.items()
        if names is None or name in names
    }


def oracle(reference):
    """Import an oracle; torch is imported with it."""
    module, name = reference.split(":")
    return getattr(importlib.import_module(f"tests.reference.{module}"), name)


def draw(seed, scale=1.0):
    """Draw a tree of SHAPES."""
    rng = np.random.default_rng(seed)
    return {
        layer: {name: scale * rng.standard_normal(shape) for name, shape in of.items()}
        for layer, of in SHAPES.items()
    }


def gradients(steps=STEPS):
    """Draw gradients whose size spans six decades from neuron to neuron."""
    return [
        {
            layer: {
                name: np.logspace(-3, 3, leaf.shape[-1]) * leaf
                for name, leaf in of.items()
            }
            for layer, of in draw(100 + step).items()
        }
        for step in range(steps)
    ]
