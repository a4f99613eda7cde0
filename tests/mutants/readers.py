"""Errors in what keeps neurons safe, and in what reads them."""

from tests.mutants.mutant import Mutant

ISOLATION, SAFETY = "projections/isolation.py", "tests/test_safety.py"
BIT_FOR_BIT = f"{SAFETY} -k bit_for_bit"
MOVES, LAYERS = "interop/moves.py", "tests/test_interop_layers.py"
RATES, REPORTS = "introspection/rates.py", "introspection/reports.py"
STATES, INTROSPECTION = "introspection/states.py", "tests/test_introspection.py"

READERS = {
    "state of a neuron that skips moves on": Mutant(
        ISOLATION,
        "jnp.reshape(jnp.where(skips, old, new), of.shape)",
        "jnp.reshape(new, of.shape)",
        BIT_FOR_BIT,
    ),
    "momentum moves a neuron that skips": Mutant(
        ISOLATION,
        "moved = rebox(_zeroed(axes, bad, unbox(moved)), updates)",
        "moved = rebox(unbox(moved), updates)",
        f"{SAFETY} -k decay_and_momentum",
    ),
    "counted where all is sound": Mutant(
        ISOLATION,
        "_increased(state.skipped, bad)",
        "_increased(state.skipped, jax.tree.map(jnp.logical_not, bad))",
        f"{SAFETY} -k counters_of_all",
    ),
    "state of which nothing is known passes": Mutant(
        ISOLATION, "if not told:", "if False:", f"{SAFETY} -k refused_by_its_name"
    ),
    "warm-up the wrong way round": Mutant(
        "accumulators.py",
        "(1 - share) * start + share * accumulator",
        "share * start + (1 - share) * accumulator",
        f"{SAFETY} -k warms_up",
    ),
    "schedule of the next step": Mutant(
        RATES,
        "learning_rate(jnp.maximum(kept.step - 1, 0))",
        "learning_rate(kept.step)",
        f"{INTROSPECTION} -k times_direction",
    ),
    "base once for each of two rates": Mutant(
        RATES,
        "bases[0] * math.prod(trees)",
        "math.prod(bases) * math.prod(trees)",
        f"{INTROSPECTION} -k multiplied",
    ),
    "rates injected elsewhere": Mutant(
        STATES,
        "place = place if own is None else place._replace(injected=own)",
        "place = place._replace(injected=own)",
        f"{INTROSPECTION} -k own_are_told_apart",
    ),
    "rates injected for another part": Mutant(
        RATES,
        "parts[: len(of)] == of",
        "len(of) >= 0",
        f"{INTROSPECTION} -k another_part",
    ),
    "decades of zeros": Mutant(
        REPORTS,
        "jnp.where(factor > 0, factor, jnp.inf)",
        "factor",
        "tests/test_reports.py -k got_no_step",
    ),
    "gates of LSTM in another order": Mutant(
        "interop/layers.py", '"lstm": "ifgo"', '"lstm": "igfo"', f"{LAYERS} -k lstm"
    ),
    "taps not reversed": Mutant(
        MOVES,
        "(*spatial, 0, 1), reversed_taps)",
        "(*spatial, 0, 1))",
        f"{LAYERS} -k transpose",
    ),
    "a kernel as torch has it": Mutant(
        MOVES,
        "return Move(source, leaf, source, (1, 0))",
        "return Move(source, leaf, source, (0, 1))",
        f"{LAYERS} -k linear",
    ),
    "the last place of twice the number": Mutant(
        "interop/differences.py",
        "np.ldexp(eps, exponent - 1)",
        "np.ldexp(eps, exponent)",
        "tests/test_interop_compare.py",
    ),
    "noise over signal": Mutant(
        "advice/ratios.py",
        "jnp.nanmean(1 / jnp.where(",
        "jnp.nanmean(jnp.where(",
        "neuron_optax/advice/ratios.py",
    ),
    "the most numbers that advice allows": Mutant(
        "advice/suggestions.py",
        "min(ways, key",
        "max(ways, key",
        "neuron_optax/advice/suggestions.py",
    ),
    "bands of other quantiles": Mutant(
        "plot/training.py", '(0.25, 0.75, "', '(0.2, 0.8, "', "tests/test_plot.py"
    ),
}
