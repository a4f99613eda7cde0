"""Errors in the strategies that follow the first."""

from tests.mutants.mutant import Mutant

ACTIVITY, LEARNED = "strategies/activity.py", "strategies/learned.py"
TRUST, MOMENTS = "strategies/trust.py", "strategies/moments.py"
NORMALIZED, ALIAS = "strategies/normalized.py", "strategies/alias.py"
ORTHOGONAL, COLUMNS = "strategies/orthogonal.py", "strategies/columns.py"
MAGNITUDES, LOWRANK = "strategies/magnitudes.py", "strategies/lowrank.py"
MATRICES, SURFACE = "projections/matrices.py", "projections/weights.py"
GUARDS = "projections/guards.py"


def parity(rows):
    """Name the comparisons per neuron of these rows."""
    return f"tests/test_parity.py -k test_every_step_matches_pytorch[{rows}-neuron]"


FAMILY = {
    "decay of untouched rows": Mutant(
        GUARDS,
        "jnp.where(touched(seen, None, of.reduced) > 0, update, 0)",
        "update",
        parity("rowwise_adagrad-changed"),
    ),
    "decoupled decay where L2 was asked for": Mutant(
        "strategies/gradients.py",
        'if decay == "l2":',
        'if decay == "l3":',
        parity("rowwise_adagrad-l2"),
    ),
    "mean instead of sum": Mutant(
        MOMENTS,
        "        sum_square,\n",
        "        mean_square,\n",
        parity("subset_norm_adam-default"),
    ),
    "eps after the correction of the bias": Mutant(
        MOMENTS,
        "    scaled = optax.chain(scaled, correct_late(b2))\n",
        "",
        parity("subset_norm_adam-default"),
    ),
    "decay before the step": Mutant(
        ALIAS,
        "decay.update(zeros, state, moved, **extra_args)",
        "decay.update(zeros, state, params, **extra_args)",
        parity("subset_norm_adam-changed"),
    ),
    "rows of vectors decay": Mutant(
        MOMENTS,
        "rank(axes[path]) >= 2",
        "rank(axes[path]) >= 1",
        parity("slim_adam-changed"),
    ),
    "fan-in and outputs of a matrix swapped": Mutant(
        MATRICES,
        "for part in (whole.output, whole.fan_in)",
        "for part in (whole.fan_in, whole.output)",
        parity("neuron_sgd-rmnp"),
    ),
    "shape factor of Scion without its root": Mutant(
        NORMALIZED,
        "1.0 / math.sqrt(max(inputs, 1))",
        "1.0 / max(inputs, 1)",
        parity("neuron_sgd-scion"),
    ),
    "Nesterov forgotten": Mutant(
        ALIAS,
        "return optax.trace(momentum, nesterov)",
        "return optax.trace(momentum)",
        parity("neuron_sgd-rmnp"),
    ),
    "size of biases measured after every step": Mutant(
        NORMALIZED,
        "    unset = size == 0\n",
        "    unset = size == size\n",
        parity("nero-default"),
    ),
    "wrong length in the rounding of equal weights": Mutant(
        SURFACE,
        "jnp.sqrt(size_over(weights, of.reduced)) * jnp.abs(mean)",
        "jnp.zeros_like(size)",
        "tests/test_surface.py -k rounding_alone",
    ),
    "products added up in their low dtype": Mutant(
        MATRICES,
        "*low, preferred_element_type=x.dtype",
        "*low",
        "tests/test_matrices.py -k rounded",
    ),
    "factors of products not rounded": Mutant(
        MATRICES,
        "jnp.asarray(factor, matmul_dtype)",
        "jnp.asarray(factor)",
        "tests/test_matrices.py -k rounded",
    ),
    "neurons not centred": Mutant(
        SURFACE,
        "centred = near_one - mean ",
        "centred = near_one ",
        parity("nero-default"),
    ),
    "trust coefficient where a norm is zero": Mutant(
        TRUST,
        "return jnp.where(defined, trusted, 1.0)",
        "return jnp.where(defined, trusted, trust_coefficient)",
        "tests/test_network.py -k neuron_lars",
    ),
    "eps of LARS forgotten": Mutant(
        TRUST,
        "(jnp.where(defined, size, 1.0) + eps)",
        "jnp.where(defined, size, 1.0)",
        parity("neuron_lars-changed"),
    ),
    "learning rate after the momentum of LARS": Mutant(
        TRUST,
        "        optax.scale_by_learning_rate(learning_rate),\n"
        "        heavy_ball(momentum, nesterov),\n",
        "        heavy_ball(momentum, nesterov),\n"
        "        optax.scale_by_learning_rate(learning_rate),\n",
        "tests/test_contract.py -k do_not_rest",
    ),
    "frequent neurons take larger steps": Mutant(
        ACTIVITY,
        "power(-exponent)",
        "power(exponent)",
        parity("frequency_sgd-default"),
    ),
    "agreement with the gradient itself": Mutant(
        LEARNED,
        "previous = state.direction.previous",
        "previous = updates",
        parity("hypergradient_sgd-default"),
    ),
    "product of sizes forgotten": Mutant(
        LEARNED,
        "/ jnp.where(size > 0, size, 1.0)",
        "",
        parity("hypergradient_sgd-default"),
    ),
    "learned rates without a bound": Mutant(
        "accumulators.py",
        "jnp.clip(memory * (1 + gain * statistic), low, high)",
        "memory * (1 + gain * statistic)",
        parity("hypergradient_sgd-changed"),
    ),
    "down by steps": Mutant(
        "accumulators.py",
        "memory * (1 - decrease)",
        "memory - decrease",
        parity("delta_bar_delta-default"),
    ),
    "one iteration less": Mutant(
        MATRICES,
        "for step in range(steps):",
        "for step in range(steps - 1):",
        parity("normuon-default"),
    ),
    "norm not restored": Mutant(
        MATRICES,
        "update * (wanted / (size + eps))",
        "update",
        parity("normuon-default"),
    ),
    "no aspect ratio": Mutant(
        MATRICES,
        "math.sqrt(max(1.0, outputs / max(inputs, 1)))",
        "1.0",
        parity("normuon-default"),
    ),
    "embeddings orthogonalised": Mutant(
        ALIAS,
        "known = path in axes and not re.search(auxiliary, path)",
        "known = path in axes",
        "tests/test_matrices.py",
    ),
    "columns bounded by themselves": Mutant(
        COLUMNS,
        "jnp.clip(column, clamp * mean, mean / clamp)",
        "column",
        parity("namo_d-default"),
    ),
    "decay of columns at one rate": Mutant(
        COLUMNS,
        "(jnp.minimum(alpha * c, 1) * w",
        "(alpha * w",
        parity("namo_d-changed"),
    ),
    "gradient along the weights kept": Mutant(
        MAGNITUDES,
        "g - y * n,",
        "g,",
        parity("muown-default"),
    ),
    "the norm of the direction forgotten": Mutant(
        MAGNITUDES,
        "h * n - eta * o",
        "n - eta * o",
        parity("muown-default"),
    ),
    "growth not limited": Mutant(
        LOWRANK,
        "jnp.maximum(now / (before + 1e-8), growth) / growth",
        "1.0",
        parity("apollo-default"),
    ),
    "one projection for ever": Mutant(
        LOWRANK,
        "state.step // period",
        "0 * state.step",
        parity("apollo-changed"),
    ),
    "a NaN in the momentum": Mutant(
        "projections/stateless.py",
        "move(inner, seen, state, params, extra_args)",
        "move(inner, updates, state, params, extra_args)",
        "tests/test_dynamics.py",
    ),
}
