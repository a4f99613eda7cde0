"""Errors in what lies on which device."""

from tests.mutants.mutant import Mutant

PIECES = "tests/test_shard_map.py"

SCALE = {
    "pieces summed each by itself": Mutant(
        "pieces.py",
        "return collective(reduced, names) if names else reduced",
        "return reduced",
        f"{PIECES} -k pieces_take_the_steps_of_the_whole[neuron_adagrad",
    ),
    "entries of one piece counted": Mutant(
        "pieces.py",
        "return own * math.prod(jax.lax.axis_size(name) for name in names)",
        "return own",
        f"{PIECES} -k pieces_take_the_steps_of_the_whole[neuron_adagrad",
    ),
    "whole leaves summed over the mesh": Mutant(
        "pieces.py",
        "return not checked or differs(array, name)",
        "return True",
        f"{PIECES} -k test_a_layout_says_it_for_all_its_leaves",
    ),
    "a mean over the neurons of a piece": Mutant(
        "rates.py",
        'require_whole(value, "its layer, whose mean redistribute needs")',
        "pass",
        "tests/test_pieces.py -k test_a_mean_over_the_neurons",
    ),
    "mesh axes that do not divide": Mutant(
        "sharding.py",
        "or not divides(names, size)",
        "",
        "tests/test_sharding.py -k test_blocks",
    ),
    "what is not known taken for whole": Mutant(
        "sharding.py",
        "        return UNKNOWN\n",
        "        return None\n",
        "tests/test_sharding.py -k cannot_be_decided",
    ),
    "axes left in place of those that were dropped": Mutant(
        "sharding.py",
        "[_names(entry) for entry in _filled(leaf.sharding, leaf.ndim)]",
        "[_names(entry) for entry in reversed(_filled(leaf.sharding, leaf.ndim))]",
        "tests/test_sharding.py -k by_hand",
    ),
    "a plan of whole leaves": Mutant(
        "memory.py",
        "math.prod(sharding.shard_shape(leaf.shape))",
        "math.prod(leaf.shape)",
        "tests/test_memory.py -k per_device_are_those",
    ),
}
