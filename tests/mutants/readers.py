"""Errors in what keeps neurons safe, and in what reads them."""

from tests.mutants.mutant import Mutant

ISOLATION, SAFETY = "projections/isolation.py", "tests/test_safety.py"
BIT_FOR_BIT = f"{SAFETY} -k bit_for_bit"
RATES, REPORTS = "introspection/rates.py", "introspection/reports.py"
STATES, INTROSPECTION = "introspection/states.py", "tests/test_introspection.py"

READERS = {
    "state of a neuron that skips moves on": Mutant(
        ISOLATION, "jnp.where(skips, old, new)", "new", BIT_FOR_BIT
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
        "injected = injected if own is None else own",
        "injected = own",
        f"{INTROSPECTION} -k own_are_told_apart",
    ),
    "decades of zeros": Mutant(
        REPORTS,
        "jnp.where(rate > 0, rate, jnp.inf)",
        "rate",
        f"{INTROSPECTION} -k got_no_step",
    ),
}
