"""Advice is right where the answer is known, and its layout costs what it says."""

import math
import re
import sys

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from flax.training.train_state import TrainState

import benchmarks.advice
import neuron_optax
from neuron_optax import ADAM_MINI, FLAX, TORCH, Layout, Neurons, slim_adam
from neuron_optax.advice import snr, suggest_layout
from neuron_optax.memory import state_bytes

TOLERANCE = 1e-12  # float64: only the order of summation differs
SIZES = np.logspace(-2, 2, 24)  # of gradients, along axes that cannot share
EVEN = np.ones((24, 24))
MODEL = {  # the scales of a kernel's gradients, and the numbers that follow
    "by_neuron": (EVEN * SIZES[None], (1, 24)),
    "by_input": (EVEN * SIZES[:, None], (24, 1)),
    "by_both": (np.outer(SIZES, SIZES), (24, 24)),
    "alike": (EVEN, (1, 1)),
}


def varied(seed, shape):
    return np.random.default_rng(seed).lognormal(0.0, 0.5, shape)


def signal(numbers):
    """Return the squared mean over the variance, by definition."""
    return numbers.mean() ** 2 / numbers.var()


def adam_state(second_moment, first_moment=None):
    return optax.ScaleByAdamState(0, first_moment, second_moment)


def ratios(moment, neurons=FLAX):
    return snr(adam_state({"kernel": jnp.asarray(moment)}), neurons).ratios["kernel"]


@pytest.fixture(scope="module")
def trained():
    """Return the state of Adam after 600 gradients of known scales."""
    scales = {name: {"kernel": scale} for name, (scale, _) in MODEL.items()}
    scales |= {"norm": {"scale": np.ones(24)}}
    adam, rng = optax.adam(1e-3), np.random.default_rng(0)
    draw = lambda s: jnp.float32(rng.standard_normal((600, *s.shape)) * s[None])
    step = lambda state, g: (adam.update(g, state)[1], None)
    start = adam.init(jax.tree.map(lambda s: jnp.zeros(s.shape), scales))
    return jax.lax.scan(step, start, jax.tree.map(draw, scales))[0]


def test_ratios_of_an_outer_product_are_those_of_its_factors(float64):
    rows, columns = varied(0, 7), varied(1, 5)
    found, both = ratios(np.outer(rows, columns)), signal(np.outer(rows, columns))
    expected = {"neuron": signal(rows), "input": signal(columns), "layer": both}
    assert found == pytest.approx(expected, rel=TOLERANCE)
    assert ratios(np.outer(columns, rows)) != pytest.approx(expected, rel=1e-3)


def test_ratios_are_means_of_the_neurons_ratios_not_ratios_of_their_means(float64):
    moment = varied(2, (7, 5))
    each = [signal(moment[:, neuron]) for neuron in range(5)]
    found = ratios(moment)["neuron"]
    assert found == pytest.approx(np.mean(each), rel=TOLERANCE)
    assert found != pytest.approx(signal(moment.mean(1)), rel=1e-3)


@pytest.mark.parametrize("unit", [1e-35, 1e35])
def test_squares_neither_underflow_nor_overflow(unit):
    moment = varied(3, (7, 5)).astype(np.float32)
    # A quotient by the peak, its mean and its square: some roundings of 1e-7.
    assert ratios(moment * np.float32(unit)) == pytest.approx(ratios(moment), rel=1e-5)
    assert np.float32(1e-35) ** 2 == 0


def test_moments_of_low_precision_are_widened():
    moment = jnp.bfloat16(varied(3, (7, 5)))
    exact = signal(np.asarray(moment, np.float64))
    assert ratios(moment)["layer"] == pytest.approx(exact, rel=1e-5)
    assert float(signal(moment)) != pytest.approx(exact, rel=1e-5)


def test_a_head_is_an_entry_of_two_axes_or_a_block_of_one(float64):
    heads = varied(4, (6, 3, 4))
    by_axis = ratios(heads, Neurons(output=(1, 2)))
    by_block = ratios(heads.reshape(6, 12), Neurons(blocks=((-1, 3),)))
    expected = np.mean([signal(heads[:, head]) for head in range(3)])
    assert by_axis["head"] == pytest.approx(expected, rel=TOLERANCE)
    assert by_block == pytest.approx(by_axis, rel=TOLERANCE)
    wrong = ratios(heads.reshape(6, 12), Neurons(blocks=((-1, 4),)))
    assert wrong["head"] != pytest.approx(expected, rel=1e-3)


def test_the_least_ratio_of_stacked_copies_counts(float64):
    copies = np.stack([varied(5, (7, 5)), varied(6, (7, 5)) ** 2])
    found = ratios(copies, Neurons(stack=(0,)))
    each = [ratios(copy) for copy in copies]
    least = {way: min(one[way] for one in each) for way in each[0]}
    assert found == pytest.approx(least, rel=TOLERANCE)
    assert each[0] != pytest.approx(each[1], rel=1e-3)


def test_rows_without_activity_or_without_variance_do_not_count(float64):
    moment = varied(7, (7, 5))
    still = np.concatenate([moment, np.zeros((7, 1)), np.full((7, 1), 3.0)], axis=1)
    assert ratios(still)["neuron"] == pytest.approx(ratios(moment)["neuron"], TOLERANCE)
    assert ratios(still)["layer"] != pytest.approx(ratios(moment)["layer"], rel=1e-3)


def test_a_moment_without_variance_is_infinitely_clear_and_zeros_say_nothing():
    columns = np.tile(varied(8, 5), (7, 1))
    assert ratios(columns)["neuron"] == math.inf > ratios(columns)["input"]
    assert all(map(math.isnan, ratios(np.zeros((7, 5))).values()))
    zeros = {"dead": jnp.zeros((7, 5)), "kernel": jnp.asarray(columns)}
    axes = suggest_layout(zeros, cutoff=0.0, show=False).resolve(zeros)
    assert axes["dead"].numbers == (7, 5)
    assert axes["kernel"].numbers == (1, 1)


def test_what_shares_nothing_has_no_ratio():
    assert ratios(varied(9, (1, 4))).keys() == {"input", "layer"}
    assert ratios(varied(9, (4, 1))).keys() == {"neuron", "layer"}
    assert not any(ratios(varied(9, shape)) for shape in [(1, 1), (0, 3), 4, ()])
    assert ratios(varied(9, (2, 3)), Neurons(output=...)) == {}


@pytest.mark.parametrize("name", MODEL)
def test_gradients_of_known_scales_lead_to_the_known_layout(name, trained):
    numbers = lambda layout: layout.axes(f"{name}/kernel", (24, 24)).numbers
    assert numbers(suggest_layout(trained, show=False)) == MODEL[name][1]
    assert numbers(suggest_layout(trained, cutoff=0.0, show=False)) == (1, 1)
    assert numbers(suggest_layout(trained, cutoff=math.inf, show=False)) == (24, 24)


def test_the_layout_trains_and_saves_as_many_bytes_as_printed(trained, capsys):
    layout, params = suggest_layout(trained), trained[0].nu
    printed = capsys.readouterr().out.splitlines()
    optimizer = slim_adam(1e-3, neurons=layout)
    unstored = neuron_optax.scale_per_neuron(
        neuron_optax.mean_square,
        neuron_optax.ema(0.999),
        neuron_optax.inverse_root(1e-8),
        neurons=layout,
        direction=optax.ema(0.9),
        store_rate=False,
    )
    adam = state_bytes(optax.adam(1.0), params)
    saved, alone = (adam - state_bytes(of, params) for of in (optimizer, unstored))
    assert printed[-1].startswith(f"saves {saved:,} of {adam:,} bytes")
    assert f", {alone:,} (" in printed[-1]
    assert adam - state_bytes(slim_adam(1.0), params) not in (saved, alone)
    cells = (re.split("  +", line)[-1] for line in printed[1:-1])
    assert sum(int(cell.replace(",", "")) for cell in cells) - 4 == saved
    update = jax.jit(lambda g: optimizer.update(g, optimizer.init(g), g)[0])
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(update(params)))


def test_of_as_few_numbers_those_of_the_higher_ratio_are_kept():
    moment = np.outer(varied(12, 24), varied(13, 24) ** 2)
    cutoff = ratios(moment)["input"]
    assert ratios(moment)["layer"] < cutoff < ratios(moment)["neuron"]
    for kernel, numbers in (moment, (1, 24)), (moment.T, (24, 1)):
        layout = suggest_layout({"kernel": kernel}, FLAX, cutoff, show=False)
        assert layout.axes("kernel", (24, 24)).numbers == numbers


PARAMS = {"layer": {"kernel": jnp.ones((7, 5)), "bias": jnp.ones(5)}}
GRADIENTS = jax.tree.map(lambda leaf: jnp.asarray(varied(1, leaf.shape)), PARAMS)
FOUND = snr({"layer": {"kernel": GRADIENTS["layer"]["kernel"] ** 2}}).ratios
LABELS = {"layer": {"kernel": "adamw", "bias": "adam"}}
ADAM = optax.adam(1e-3)
WRAPPED = {  # optimizers that hold Adam's state somewhere
    "chain": optax.chain(optax.clip(1e9), optax.adamw(1e-3)),
    "masked": optax.masked(ADAM, {"layer": True}),
    "partition": optax.partition({"adam": ADAM, "adamw": optax.adamw(1e-3)}, LABELS),
    "inject": optax.inject_hyperparams(optax.adam)(1e-3),
    "steps": optax.MultiSteps(ADAM, 1),
}


@pytest.mark.parametrize("name", WRAPPED)
def test_the_state_of_adam_is_found_wherever_it_is(name):
    train = TrainState.create(apply_fn=None, params=PARAMS, tx=WRAPPED[name])
    found = snr(jax.jit(lambda g: train.apply_gradients(grads=g))(GRADIENTS)).ratios
    # After one step the moment is the square of the gradient, up to its rounding.
    assert found.keys() == {"layer/kernel", "layer/bias"}
    assert found["layer/kernel"] == pytest.approx(FOUND["layer/kernel"], rel=1e-5)


def test_paths_of_nnx_and_equinox_are_those_of_their_params():
    linear = nnx.Linear(7, 5, rngs=nnx.Rngs(0))
    optimizer = nnx.Optimizer(linear, ADAM, wrt=nnx.Param)
    with pytest.raises(ValueError, match="only zeros"):
        suggest_layout(optimizer)
    optimizer.opt_state[0].nu["kernel"].set_value(jnp.ones((7, 5)))
    layout = suggest_layout(optimizer, show=False)
    state = slim_adam(1e-3, neurons=layout).init(nnx.state(linear, nnx.Param))
    assert state[0].memory["kernel"][...].shape == (1, 1)

    net = eqx.filter(eqx.nn.MLP(4, 3, 5, 1, key=jax.random.key(0)), eqx.is_array)
    layout = suggest_layout(jax.tree.map(jnp.ones_like, net), TORCH, show=False)
    memory = jax.eval_shape(slim_adam(1e-3, neurons=layout).init, net)[0].memory
    assert memory.layers[1].weight.shape == (1, 1)
    assert memory.layers[1].bias.shape == (3,)


def test_several_states_are_averaged_and_may_be_measured_as_they_come():
    kernels = [varied(10, (7, 5)), varied(11, (7, 5)), np.zeros((7, 5))]
    states = [adam_state({"kernel": kernel}) for kernel in kernels]
    first, second, _ = map(ratios, kernels)
    found = snr(states).ratios["kernel"]
    mean = {way: (first[way] + second[way]) / 2 for way in first}
    assert found == pytest.approx(mean, rel=TOLERANCE)
    assert found != pytest.approx(first, rel=1e-3)
    assert snr([snr(state) for state in states]).ratios["kernel"] == found


def test_a_rule_is_for_its_leaf_alone():
    paths = ["a/k", "b/a/k", "a/k2", "l.1/k", "l_1/k", "l+/k", "a/k/w"]
    even = {path: jnp.ones((24, 24)) for path in paths[::2]}
    tree = even | {path: jnp.asarray(MODEL["by_both"][0]) for path in paths[1::2]}
    axes = suggest_layout(tree, show=False).resolve(tree)
    assert {path for path, of in axes.items() if of.numbers == (1, 1)} == even.keys()


def test_the_parts_of_a_complex_leaf_have_the_rule_that_suits_both():
    split = optax.contrib.split_real_and_imaginary(ADAM)
    params = {"layer": {"kernel": jnp.ones((24, 24), jnp.complex64)}}
    for name in ("alike", "by_neuron"):
        gradient = {"layer": {"kernel": jnp.asarray(EVEN + 1j * MODEL[name][0])}}
        _, state = split.update(gradient, split.init(params))
        layout = suggest_layout(state, show=False)
        assert layout.axes("layer/kernel", (24, 24)).numbers == MODEL[name][1]


def test_leaves_that_were_not_seen_keep_their_rules_and_stacks_their_copies():
    tree = {"layers": {"kernel": jnp.ones((2, 7, 5)), "bias": jnp.ones((2, 5))}}
    stacked = FLAX.override({"layers/kernel": Neurons(stack=(0,))})
    for given, numbers in (stacked, (2, 1, 1)), (FLAX, (1, 1, 1)):
        layout = suggest_layout(tree, given, show=False)
        assert layout.resolve(tree)["layers/kernel"].numbers == numbers
        assert layout.resolve(tree)["layers/bias"].numbers == (2, 5)
        assert layout.axes("table/embedding", (9, 4)).numbers == (9, 1)


def test_blocks_of_stacks_stay_and_a_layout_says_nothing_of_a_mesh():
    folded = Layout(fallback=Neurons((1,), stack=(0,), blocks=((0, 2),)))
    tree = {"kernel": jnp.asarray(np.tile(SIZES, (6, 1)))}  # (copies * in, out)
    layout = suggest_layout(tree, folded.with_reduce_over(("fsdp",)), show=False)
    assert layout.axes("kernel", (6, 24)).numbers == (2, 1, 24)
    assert layout.neurons("kernel", 2).reduce_over is None
    query = snr({"query": {"kernel": jnp.ones((4, 2, 3))}}, ADAM_MINI)
    assert "head" not in query.ratios["query/kernel"]  # a neuron of its authors is one


ONES, FLAT = {"kernel": jnp.ones((4, 3))}, {"kernel": jnp.ones((1, 3))}
TURNED = [adam_state(ONES), adam_state({"kernel": jnp.ones((3, 4))})]
REFUSED = {  # arguments, error and what it says
    "no adam": ((optax.sgd(1.0, 0.9).init(ONES),), ValueError, "TraceState"),
    "ours": ((slim_adam(1.0).init(ONES),), ValueError, "NeuronState"),
    "nothing": (({},), ValueError, "a tree of none"),
    "reduced": ((FLAT,), ValueError, r"\(1, 3\)"),
    "half": ((adam_state(FLAT, ONES),), ValueError, r"moment of kernel .*\(1, 3\)"),
    "negative": (({"kernel": -jnp.ones((4, 3))},), ValueError, "kernel.*negative"),
    "infinite": (
        ({"kernel": jnp.full((4, 3), jnp.inf)},),
        ValueError,
        "kernel.*finite",
    ),
    "integers": (({"kernel": np.ones((4, 3), int)},), TypeError, "kernel.*int"),
    "shapes": ((TURNED,), ValueError, r"kernel: got the shapes \(4, 3\) and \(3, 4\)"),
    "others": ((snr(ONES), TORCH), ValueError, "earlier ratios"),
    "cutoff": ((ONES, FLAX, -1.0), ValueError, "cutoff"),
}


@pytest.mark.parametrize(("arguments", "error", "said"), REFUSED.values(), ids=REFUSED)
def test_what_gives_no_advice_is_refused(arguments, error, said):
    with pytest.raises(error, match=said):
        suggest_layout(*arguments)


@pytest.mark.slow
def test_the_benchmark_trains_with_the_advice_and_against_it(capsys, monkeypatch):
    command = "_ --steps 10 --width 16 --seeds 0 --rates 0.01"
    monkeypatch.setattr(sys, "argv", command.split())
    benchmarks.advice.main()
    adam, *shared = capsys.readouterr().out.splitlines()[-5:]
    assert adam.startswith("| adam |") and "+0.000" in adam
    assert all(int(row.split("|")[2].replace(",", "")) < 84_000 for row in shared)
