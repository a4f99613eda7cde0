"""The table of strategies: oracle, arguments off their default, what each promises.

A new strategy is a row here, an oracle under ``reference`` and its composition.
"""

import jax.numpy as jnp
import numpy as np
import optax

import neuron_optax
from neuron_optax import FLAX
from neuron_optax.strategies.lowrank import projection
from tests.case import SCHEDULE, SLOW, Case


def weight_norm_sgd(
    learning_rate, scaling_factor=0.01, momentum=0.0, weight_decay=0.0, **options
):
    return optax.chain(
        optax.trace(momentum),
        neuron_optax.scale_by_weight_norm(scaling_factor, **options),
        optax.add_decayed_weights(weight_decay),
        optax.scale_by_learning_rate(learning_rate),
    )


def as_matrices(params):
    """Say to Optax's Muon what the matrices of SHAPES are."""
    axes = optax.contrib.MuonDimensionNumbers
    return {
        layer: {
            "kernel": axes(tuple(range(of["kernel"].ndim - 1)), (-1,)),
            "bias": None,
        }
        for layer, of in params.items()
    }


def projected(changed):
    """Give the oracle of APOLLO the projections that ours draws."""
    changed = dict(changed)
    rank, seed = changed.pop("rank"), changed.pop("seed", 0)
    period = changed.pop("period", 200)
    per_tensor = changed.pop("channels", "larger") == "layer"

    def projections(p, t):
        shape = len(p), p[0].numel()
        of = 1, min(rank, *shape), min(shape)
        drawn = projection(seed, (t - 1) // period, of, jnp.result_type(float))
        tensor = p.new_tensor(np.asarray(drawn[0]))
        return tensor if shape[0] < shape[1] else tensor.T

    return {**changed, "projections": projections, "per_tensor": per_tensor}


def bounds(low, high):
    """Return a variant that shares out the factors of a layer and bounds them."""
    both = {"redistribute": True, "low": low, "high": high}
    return {"redistribute_bounds": both}


COMMON = {
    "default": {},
    "schedule": {"learning_rate": SCHEDULE},
    "weight_decay": {"weight_decay": 0.1},
}
SPREAD = {  # the factors span 1e-3 to 1e3
    "bounds": {"low": 0.1, "high": 10.0},
    "redistribute": {"redistribute": True},
    **bounds(0.1, 0.9),
}
NORMS = {  # the factors lie around 1.02
    "bounds": {"low": 1.015, "high": 1.02},
    "redistribute": {"redistribute": True},
    "scaling_factor": {"scaling_factor": 0.5},
    "norm": {"norm": "rms"},
    "bias": {"bias": "own"},
}

ADAM = {"b1": 0.5, "b2": 0.6, "eps": 0.1, "weight_decay": 0.1}
REST = {  # of the leaves that are no matrices
    "adam_learning_rate": 0.01,
    "adam_b1": 0.4,
    "adam_b2": 0.3,
    "adam_eps": 0.2,
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
        waits=True,
        digits=0.03,
        direction=optax.identity(),
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
        digits=1e-3,
        direction=optax.identity(),
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
        digits=3e-3,
        direction=optax.ema(0.9),
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
        by_weights=True,
        on_adam=True,
        digits=3e-3,
        direction=optax.scale_by_adam(),
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
        by_weights=True,
        direction=optax.identity(),
    ),
    "rowwise_adagrad": Case(
        neuron_optax.rowwise_adagrad,
        "rowwise_adagrad:RowwiseAdagrad",
        {
            "default": {},
            **bounds(0.1, 0.9),
            "changed": {
                "initial_accumulator_value": 0.5,
                "eps": 0.1,
                "weight_decay": 0.1,
            },
            "l2": {"decay": "l2", "weight_decay": 0.1},
            "eager": {"lazy": False, "weight_decay": 0.1},
            "eager_l2": {"lazy": False, "decay": "l2", "weight_decay": 0.1},
        },
        {"memory": "acc", "rate": "rate"},
        sparse=True,
        per_entry=(
            lambda learning_rate: optax.adagrad(learning_rate, 0.0, 1e-30),
            {"eps": 1e-30},
        ),
        waits=True,
        digits=0.03,
        direction=optax.identity(),
    ),
    "slim_adam": Case(
        neuron_optax.slim_adam,
        "slim_adam:SlimAdam",
        {
            "default": {},
            **bounds(0.1, 0.9),
            "changed": ADAM,
        },
        {"memory": "v", "rate": "rate", "ema": "m"},
        per_entry=(optax.adam, {}),
        digits=3e-3,
        direction=optax.ema(0.9),
    ),
    "subset_norm_adam": Case(
        neuron_optax.subset_norm_adam,
        "subset_norm_adam:SubsetNormAdam",
        {
            "default": {},
            **bounds(0.1, 0.9),
            "changed": ADAM,
        },
        {"memory": "v", "rate": "rate", "ema": "m"},
        decays="otherwise",
        per_entry=(
            lambda learning_rate: optax.adam(learning_rate, eps=1e-30),
            {"eps": 1e-30},
        ),
        digits=0.02,
    ),
    "neuron_sgd": Case(
        neuron_optax.neuron_sgd,
        "neuron_sgd:NeuronSGD",
        {
            "default": {},
            **bounds(0.1, 0.9),
            "changed": {"momentum": 0.5, "eps": 0.1, "weight_decay": 0.1},
            "rmnp": {"norm": "l2", "nesterov": True, "shape_factor": "aspect"},
            "scion": {"norm": "l2", "shape_factor": "fan_in"},
        },
        {"memory": "s", "rate": "rate", "trace": "M"},
        per_entry=(optax.sign_sgd, {"momentum": 0.0}),
        digits=1e-3,
        direction=optax.trace(0.9),
    ),
    "nero": Case(
        neuron_optax.nero,
        "nero:Nero",
        {
            "default": {},
            "changed": {"decay": 0.5},
            **bounds(0.1, 0.9),
        },
        {"memory": "v", "rate": "rate", "size": "S"},
        learning_rate=0.01,
        start=lambda params, neurons: neuron_optax.project_neurons(
            params, neurons=neurons
        ),
        decays="never",
        rests=False,
        on_surface=True,
        at_rest=1e-15,
        needs_params=True,
        digits=0.01,
    ),
    "neuron_lars": Case(
        neuron_optax.neuron_lars,
        "neuron_lars:NeuronLARS",
        {
            "default": {},
            **bounds(0.3, 1.5),
            "changed": {
                "trust_coefficient": 0.1,
                "eps": 0.1,
                "momentum": 0.5,
                "weight_decay": 0.1,
            },
            "nesterov": {"nesterov": True},
        },
        {"rate": "rate"},
        rests=False,
        per_layer=(optax.lars, {}),
        decays="otherwise",
        needs_params=True,
        options={"trust_coefficient": 0.1},
        digits=0.5,
    ),
    "neuron_lamb": Case(
        neuron_optax.neuron_lamb,
        "neuron_lamb:NeuronLAMB",
        {
            "default": {},
            **bounds(0.3, 1.5),
            "changed": ADAM,
        },
        {"rate": "rate", "mu": "m", "nu": "v"},
        per_layer=(optax.lamb, {}),
        decays="otherwise",
        needs_params=True,
        digits=1.5e-3,
        direction=optax.scale_by_adam(eps=1e-6),
    ),
    "frequency_sgd": Case(
        neuron_optax.frequency_sgd,
        "frequency_sgd:FrequencySGD",
        {
            "default": {},
            **bounds(0.9, 1.1),
            "changed": {"exponent": 1.0, "momentum": 0.5, "weight_decay": 0.1},
            "decay": {"decay": 0.5},
        },
        {"memory": "c", "rate": "rate", "trace": "B"},
        learning_rate=1e-3,
        sparse=True,
        per_entry=(optax.sgd, {"exponent": 0.0}),
        per_layer=(optax.sgd, {"exponent": 0.0}),
        options={"momentum": 0.9},
        steady=True,
        digits=0.1,
        direction=optax.trace(0.9),
    ),
    "frequency_adam": Case(
        neuron_optax.frequency_adam,
        "frequency_adam:FrequencyAdam",
        {
            "default": {},
            **bounds(0.9, 1.1),
            "changed": {"exponent": 1.0, **ADAM},
            "decay": {"decay": 0.5},
        },
        {"memory": "c", "rate": "rate", "mu": "m", "nu": "v"},
        sparse=True,
        per_entry=(optax.adam, {"exponent": 0.0}),
        per_layer=(optax.adam, {"exponent": 0.0}),
        on_adam=True,
        steady=True,
        digits=3e-3,
        direction=optax.scale_by_adam(),
    ),
    "hypergradient_sgd": Case(
        neuron_optax.hypergradient_sgd,
        "hypergradient_sgd:HypergradientSGD",
        {
            "default": {},
            **bounds(0.9, 1.05),
            "changed": {
                "gain": 0.5,
                "momentum": 0.5,
                "weight_decay": 0.1,
                "low": 0.8,
                "high": 1.2,
            },
        },
        {"memory": "a", "rate": "rate", "previous": "D"},
        learning_rate=1e-3,
        per_entry=(optax.sgd, {"gain": 0.0}),
        per_layer=(optax.sgd, {"gain": 0.0}),
        digits=5e-3,
        direction=optax.identity(),
    ),
    "hypergradient_adam": Case(
        neuron_optax.hypergradient_adam,
        "hypergradient_adam:HypergradientAdam",
        {
            "default": {},
            **bounds(0.9, 1.05),
            "changed": {"gain": 0.5, **ADAM},
        },
        {"memory": "a", "rate": "rate", "previous": "D", "mu": "m", "nu": "v"},
        per_entry=(optax.adam, {"gain": 0.0}),
        per_layer=(optax.adam, {"gain": 0.0}),
        on_adam=True,
        digits=1e-3,
        direction=optax.scale_by_adam(),
    ),
    "delta_bar_delta": Case(
        neuron_optax.delta_bar_delta,
        "delta_bar_delta:DeltaBarDelta",
        {
            "default": {},
            **bounds(0.9, 1.05),
            "changed": {
                "increase": 0.3,
                "decrease": 0.4,
                "smoothing": 0.2,
                "weight_decay": 0.1,
            },
        },
        {"memory": "a", "rate": "rate", "previous": "G"},
        learning_rate=1e-3,
        per_entry=(optax.sgd, {"increase": 0.0, "decrease": 0.0}),
        per_layer=(optax.sgd, {"increase": 0.0, "decrease": 0.0}),
        steady=True,
        digits=0.2,
        direction=optax.identity(),
    ),
    "normuon": Case(
        neuron_optax.normuon,
        "normuon:NorMuon",
        {
            "default": {},
            **bounds(0.1, 0.9),
            "changed": {**ADAM, **REST},
            "heavy_ball": {"nesterov": False},
        },
        {"memory": "v", "rate": "rate", "trace": "M", "mu": "m", "nu": "v"},
        bias=None,
        isolated=False,
        granularities=("neuron",),
        layer_tolerance=1e-9,
        per_layer=(
            lambda learning_rate: optax.contrib.muon(
                learning_rate,
                eps=1e-7,
                nesterov=False,
                adam_b2=0.95,
                muon_weight_dimension_numbers=as_matrices,
            ),
            {
                "matrices": FLAX,
                "nesterov": False,
                "adam_eps": 1e-7,
                "adam_learning_rate": 0.1,
            },
        ),
        given=lambda changed: (
            {"adam_learning_rate": 0.015 * changed["learning_rate"]} | changed
        ),
        on_adam=True,
        digits=0.01,
    ),
    "namo_d": Case(
        neuron_optax.namo_d,
        "namo_d:NamoD",
        {
            "default": {},
            "changed": {**ADAM, **REST, "clamp": 0.3},
            "heavy_ball": {"nesterov": False},
        },
        {"memory": "V", "rate": "c", "trace": "M", "mu": "m", "nu": "v"},
        bias=None,
        isolated=False,
        granularities=("neuron",),
        decays="otherwise",
        needs_params=True,
        on_adam=True,
        digits=0.01,
    ),
    "muown": Case(
        neuron_optax.muown,
        "muown:Muown",
        {
            "default": {},
            "changed": {
                "b1": 0.5,
                "adam_b1": 0.4,
                "adam_b2": 0.3,
                "eps": 0.1,
                "weight_decay": 0.1,
                "adam_learning_rate": 0.01,
            },
        },
        {"magnitude": "G", "size": "h", "trace": "M"},
        bias=None,
        isolated=False,
        granularities=("neuron",),
        numbers=("magnitude", "size"),
        decays="otherwise",
        rests=False,
        at_rest=1e-15,
        needs_params=True,
        on_adam=True,
        digits=3e-3,
    ),
    "apollo": Case(
        neuron_optax.apollo,
        "apollo:Apollo",
        {
            "default": {"rank": 2},
            "changed": {**ADAM, "rank": 2, "scale": 2.0, "period": 5, "seed": 1},
            "mini": {"rank": 1, "scale": 128.0, "channels": "layer"},
        },
        {"size": "prev"},
        bias=None,
        learning_rate=0.01,
        isolated=False,
        isolable=False,
        permutation=False,
        granularities=("neuron",),
        numbers=("rate", "size"),
        decays="otherwise",
        given=projected,
        digits=0.01,
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
