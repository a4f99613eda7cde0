"""Errors in the parts, the core and the first strategies."""

from tests.mutants.mutant import PARITY, Mutant

GRADIENTS, WEIGHTS = "strategies/gradients.py", "strategies/weights.py"
LAYERS, ALIAS = "strategies/layers.py", "strategies/alias.py"
MOMENTS = "strategies/moments.py"

PARTS = {
    "sum instead of mean": Mutant(
        "statistics.py",
        "sum_square(update, param, fan_in) / max(size_over(update, fan_in), 1)",
        "sum_square(update, param, fan_in)",
        PARITY,
    ),
    "norm of the update instead of the weights": Mutant(
        "statistics.py",
        "return norm(_weights(param), None, fan_in)",
        "return norm(update, None, fan_in)",
        "tests/test_parity.py -k weight_norm",
    ),
    "rms over one entry too many": Mutant(
        "statistics.py",
        "return rms(_weights(param), None, fan_in)",
        "return norm(_weights(param), None, fan_in)",
        "tests/test_parity.py -k norm-neuron",
    ),
    "gradient through the norm": Mutant(
        "statistics.py",
        "return jax.lax.stop_gradient(param)",
        "return param",
        "tests/test_core.py -k gradient_flows",
    ),
    "trust ratio upside down": Mutant(
        "statistics.py",
        "weight / jnp.where(defined, gradient, 1.0)",
        "gradient / jnp.where(defined, weight, 1.0)",
        "tests/test_parts.py",
    ),
    "eps inside the root": Mutant(
        "rates.py",
        "1 / (root(value) + eps)",
        "1 / root(value + eps)",
        PARITY,
    ),
    "minus the norm": Mutant(
        "rates.py",
        "1 + slope * value",
        "1 - slope * value",
        "tests/test_parity.py -k weight_norm",
    ),
    "no upper bound": Mutant(
        "rates.py",
        "jnp.clip(rate.apply(value, neurons), low, high)",
        "jnp.clip(rate.apply(value, neurons), low, None)",
        "tests/test_parity.py -k bounds-neuron",
    ),
    "sum over neurons instead of mean": Mutant(
        "rates.py",
        "mean = jnp.mean(factor",
        "mean = jnp.sum(factor",
        "tests/test_parity.py -k redistribute-neuron",
    ),
    "bounds before redistribution": Mutant(
        ALIAS,
        "return bounded(redistributed(rate) if redistribute else rate, low, high)",
        "rate = bounded(rate, low, high)\n"
        "    return redistributed(rate) if redistribute else rate",
        "tests/test_parity.py -k redistribute_bounds-neuron",
    ),
    "bias correction one step late": Mutant(
        "accumulators.py",
        "memory / (1 - beta**step)",
        "memory / (1 - beta ** (step + 1))",
        "tests/test_parity.py -k adam_mini",
    ),
    "no bias correction": Mutant(
        MOMENTS,
        "        ema(b2),",
        "        ema(b2, debias=False),",
        "tests/test_parity.py -k adam_mini",
    ),
    "bias correction where there is none": Mutant(
        GRADIENTS,
        "ema(decay, debias=False)",
        "ema(decay)",
        "tests/test_parity.py -k neuron_rmsprop",
    ),
    "the new statistic at full weight": Mutant(
        "accumulators.py",
        "decay * memory + (1 - decay) * statistic",
        "decay * memory + statistic",
        "tests/test_parity.py -k neuron_rmsprop",
    ),
    "initial value forgotten": Mutant(
        "accumulators.py",
        "lambda blank: jnp.full_like(blank, initial)",
        "jnp.zeros_like",
        "tests/test_parity.py -k initial-neuron",
    ),
    "b2 as the decay of the momentum": Mutant(
        MOMENTS,
        "        bias=bias,\n        direction=optax.ema(b1),\n    )\n    return",
        "        bias=bias,\n        direction=optax.ema(b2),\n    )\n    return",
        "tests/test_parity.py -k adam_mini",
    ),
    "clipped to the smaller of norm and eps": Mutant(
        "projections/changes.py",
        "jnp.maximum(param_norm(update, param, of.reduced), eps)",
        "jnp.minimum(param_norm(update, param, of.reduced), eps)",
        "tests/test_projections.py -k clip",
    ),
    "quiet neurons made loud": Mutant(
        "projections/changes.py",
        "loud = size > limit",
        "loud = size > 0",
        "tests/test_projections.py -k clip",
    ),
    "mean over the outputs": Mutant(
        "projections/changes.py",
        "return update - mean_over(update, of.reduced)",
        "return update - jnp.mean(update, axis=-1, keepdims=True)",
        "tests/test_projections.py -k centralize",
    ),
    "eps added to the norm": Mutant(
        "projections/changes.py",
        "update / jnp.maximum(norm(update, None, of.reduced), eps)",
        "update / (norm(update, None, of.reduced) + eps)",
        "tests/test_projections.py -k normalize",
    ),
    "infinite derivative at zero": Mutant(
        "numerics.py",
        "jnp.sqrt(jnp.where(zero, 1.0, value))",
        "jnp.sqrt(value)",
        "tests/test_contract_training.py -k derivative",
    ),
    "infinite derivative of Adam": Mutant(
        ALIAS,
        "eps_root=1e-30",
        "eps_root=0.0",
        "tests/test_contract_training.py -k derivative",
    ),
    "momentum of other params": Mutant(
        "trees.py",
        'check_same_shapes(updates, moved, "the direction of")',
        "pass",
        "tests/test_checkpoints.py -k shrunk",
    ),
    "a bias with its own rate": Mutant(
        WEIGHTS,
        "        bias=bias,\n        low=low,",
        '        bias="own",\n        low=low,',
        "tests/test_torch.py -k per_row",
    ),
    "overflow remembered": Mutant(
        "core.py",
        "memory = jax.tree.map(jnp.where, sound, now, memory)",
        "memory = now",
        "tests/test_core.py -k overflow",
    ),
    "overflow in the momentum": Mutant(
        "core.py",
        "jnp.where(size < bound, update, 0)",
        "update",
        "tests/test_core.py -k overflow",
    ),
    "overflow in the momentum of 16 bits": Mutant(
        "core.py",
        "return jnp.where(kept != 0, update, 0)",
        "return update",
        "tests/test_core.py -k overflow",
    ),
    "nothing for the momentum where the factor is zero": Mutant(
        "core.py",
        "rates if direction is None else sound",
        "rates",
        "tests/test_core.py -k momentum_goes_on",
    ),
    "an update kept in memory in 32 bits": Mutant(
        "numerics.py",
        "jax.lax.optimization_barrier(array) if narrow else array",
        "array",
        "tests/test_core.py -k narrow",
    ),
    "a bias of an overflowing kernel": Mutant(
        "core.py",
        "jax.tree.map(jnp.logical_and, finite, lent(axes, finite))",
        "finite",
        "tests/test_core.py -k overflow",
    ),
    "step counted from zero": Mutant(
        "core.py",
        "rates = lent(axes, factors(axes, memory, step))",
        "rates = lent(axes, factors(axes, memory, step - 1))",
        "tests/test_parity.py -k adam_mini",
    ),
    "statistics in low precision": Mutant(
        "numerics.py",
        "jnp.promote_types(jnp.result_type(array), jnp.float32)",
        "jnp.result_type(array)",
        "tests/test_laws.py -k dtype",
    ),
    "decay inside the statistic": Mutant(
        ALIAS,
        "        scaled,\n        decoupled_decay(weight_decay, mask),",
        "        decoupled_decay(weight_decay, mask),\n        scaled,",
        "tests/test_parity.py -k weight_decay-neuron",
    ),
    "decay with the base rate of layers": Mutant(
        LAYERS,
        "return optax.chain(scaled, optax.scale(-1.0))",
        "base = decoupled_decay(weight_decay, weight_decay_mask)\n"
        "    scaled = scale_by_layer(learning_rates, default, direction)\n"
        "    return optax.chain(scaled, base, optax.scale(-1.0))",
        "tests/test_torch.py -k layerwise_is",
    ),
    "uphill": Mutant(
        LAYERS, "optax.scale(-1.0)", "optax.scale(1.0)", "tests/test_torch.py -k layer"
    ),
    "the top layer slowest": Mutant(
        LAYERS,
        "depths = reversed(range(len(layers)))",
        "depths = range(len(layers))",
        "tests/test_torch.py -k layerwise_decay",
    ),
    "schedule one step ahead": Mutant(
        LAYERS,
        "rate = rates(unbox(updates), state.step)",
        "rate = rates(unbox(updates), state.step + 1)",
        "tests/test_torch.py -k layerwise_decay",
    ),
}
