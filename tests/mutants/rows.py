"""Errors in which rows are touched, and in what happens to the others."""

from tests.mutants.mutant import Mutant

FOUND = "tests/test_rows.py -k stands_once"
EQUAL = "tests/test_row_dense.py -k fifty_sparse_steps_are_the_dense_ones["

ROWS = {
    "rows counted as often as their ids": Mutant(
        "rows/ids.py", "prepend=-1) > 0)", "prepend=-1) >= 0)", FOUND
    ),
    "negative ids": Mutant("rows/ids.py", "& (ids >= 0)", "", FOUND),
    "ids beyond the table": Mutant(
        "rows/ids.py", "& (ids < table_size)", "& (ids <= table_size)", FOUND
    ),
    "as many slots as the table has rows": Mutant(
        "rows/ids.py",
        " + (distinct + 1 == table_size)",
        "",
        "tests/test_row_refusals.py -k never_takes_it_silently",
    ),
    "padding counted as dropped": Mutant(
        "rows/ids.py", "jnp.sum(meant & ~kept", "jnp.sum(~kept", FOUND
    ),
    "the last row read in empty slots": Mutant(
        "rows/tables.py", 'mode="fill"', 'mode="clip"', "tests/test_rows.py -k zeros"
    ),
    "padding pooled": Mutant(
        "rows/tables.py",
        "share = rows.kept if weights is None",
        "share = jnp.ones_like(rows.kept) if weights is None",
        "tests/test_rows.py -k pooled_as_by_hand",
    ),
    "a state of two numbers per row taken for one": Mutant(
        "rows/growth.py",
        "return self.by[:1] == (1,) and 1 not in self.by[1:]",
        "return any(self.by)",
        "tests/test_row_refusals.py -k told_apart",
    ),
    "gradients of slots without a row": Mutant(
        "rows/tables.py",
        "real = rows.ids < rows.table_size",
        "real = rows.ids >= 0",
        "tests/test_row_states.py -k slot_of_dropped",
    ),
    "steps of slots without a row": Mutant(
        "rows/states.py",
        "cleared = map(clear, jax.tree.leaves(updates), tables)",
        "cleared = jax.tree.leaves(updates)",
        "tests/test_row_states.py -k spoil_the_norm",
    ),
    "momentum of the table refused no more": Mutant(
        "rows/chains.py",
        "if leaf.grows:",
        "if False:",
        "tests/test_row_refusals.py -k is_refused",
    ),
    "a step missed too many": Mutant(
        "strategies/rows.py",
        "lambda seen: step - seen",
        "lambda seen: step - seen + 1",
        EQUAL + "rmsprop-catch_up",
    ),
    "rows not marked as seen": Mutant(
        "strategies/rows.py",
        "jnp.maximum(s, inner.step)",
        "jnp.maximum(s, 0)",
        EQUAL + "rmsprop-catch_up",
    ),
    "no decay made up for": Mutant(
        "accumulators.py",
        "return memory * jnp.asarray(decay, memory.dtype) ** steps",
        "return memory",
        EQUAL + "adam_mini-catch_up",
    ),
    "L2 decay outside of the statistic": Mutant(
        "strategies/rows.py",
        '(decayed, scaled) if decay == "l2" else (scaled, decayed)',
        "(scaled, decayed)",
        EQUAL + "adagrad-l2",
    ),
    "rows as columns": Mutant(
        "strategies/rows.py",
        "ROWS = Neurons(output=(0,))",
        "ROWS = Neurons(output=(-1,))",
        "tests/test_row_states.py -k few_numbers_per_row",
    ),
    "the limit on weights before the step": Mutant(
        "projections/weights.py",
        "size = norm(param + update, None, of.reduced)\n        long",
        "size = norm(param, None, of.reduced)\n        long",
        "neuron_optax/projections/weights.py",
    ),
}
