"""The table shows every leaf, marks what is in doubt; biases tell what names do not."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen

from neuron_optax import (
    FLAX,
    HAIKU,
    PER_ENTRY,
    TORCH,
    Neurons,
    adam_mini,
    describe,
    infer_layout,
)


class Model(linen.Module):
    """One of each layer that FLAX covers."""

    @linen.compact
    def __call__(self, tokens, image):
        """Run all."""
        x = linen.LayerNorm()(linen.Embed(7, 6)(tokens))
        x = linen.MultiHeadDotProductAttention(num_heads=3)(x, x)
        y = linen.BatchNorm(use_running_average=True)(linen.Conv(5, (3, 3))(image))
        return x, linen.Dense(4, use_bias=False)(y)


def test_describe_shows_every_leaf_and_marks_what_a_name_does_not_explain(capsys):
    shapes = jax.eval_shape(
        Model().init, jax.random.key(0), jnp.ones((2, 4), int), jnp.ones((1, 8, 8, 2))
    )
    stacked = {"kernel": np.ones((2, 6, 6)), "bias": np.ones((2, 6))}
    describe({**shapes["params"], "scanned": stacked, "lone": {"bias": np.ones(3)}})
    lines = {line.split()[0]: line for line in capsys.readouterr().out.splitlines()}
    assert len(lines) == 1 + 19
    words = {path: " ".join(line.split()) for path, line in lines.items()}
    attention = "MultiHeadDotProductAttention_0"
    assert words["Conv_0/kernel"] == "Conv_0/kernel (3, 3, 2, 5) (3,) () 18 5"
    assert words["Embed_0/embedding"] == "Embed_0/embedding (7, 6) (0,) () 6 7"
    assert words[f"{attention}/key/kernel"].endswith("(6, 3, 2) (1, 2) () 6 6")
    assert words[f"{attention}/out/kernel"].endswith("(3, 2, 6) (2,) () 6 6")
    assert words["scanned/kernel"].endswith("(2, 6, 6) (2,) () 12 6 check")
    assert words["scanned/bias"].endswith("beside kernel")
    assert words["lone/bias"].endswith("own statistic")
    assert words["LayerNorm_0/bias"].endswith("own statistic")
    assert sum("check" in line for line in lines.values()) == 1


def test_describe_marks_a_kernel_whose_bias_has_other_neurons(capsys):
    params = {
        "equinox": {"weight": np.ones((4, 3)), "bias": np.ones(4)},
        "conv": {"kernel": np.ones((6, 3, 3, 2, 5)), "bias": np.ones((6, 5))},
    }
    describe(params, FLAX)
    wrong = capsys.readouterr().out
    describe(params["equinox"], TORCH)
    describe({"Dense_0": {"kernel": np.ones((3, 4)), "bias": np.ones(4)}}, PER_ENTRY)
    assert wrong.count("check") == 2 and "check" not in capsys.readouterr().out


INFERRED = {  # leaf, its shape, that of the bias beside it: output, stack, its bias's
    "Dense": ("kernel", (5, 7), (7,), (1,), (), ()),
    "torch": ("weight", (7, 5), (7,), (0,), (), ()),
    "square": ("kernel", (7, 7), (7,), (1,), (), ()),
    "square torch": ("weight", (7, 7), (7,), (0,), (), ()),
    "Equinox conv": ("weight", (7, 5, 3, 3), (7, 1, 1), (0,), (), ()),
    "scan": ("kernel", (3, 5, 7), (3, 7), (2,), (0,), (0,)),
    "scan, torch": ("weight", (3, 7, 5), (3, 7), (1,), (0,), (0,)),
    "scan at axis 1": ("kernel", (5, 3, 7), (7, 3), (2,), (1,), (1,)),
    "square scan": ("kernel", (3, 7, 7), (3, 7), (2,), (0,), (0,)),
    "square scan at axis 1": ("kernel", (8, 5, 8), (8, 5), (2,), (1,), (1,)),
    "square scan, torch": ("weight", (3, 7, 7), (3, 7), (1,), (0,), (0,)),
    "scan of one output": ("kernel", (2, 3, 1), (2, 1), (2,), (0,), (0,)),
    "layers as many as heads": ("kernel", (3, 3, 4, 7), (3, 7), (3,), (0,), (0,)),
    "norm": ("weight", (3, 5), (3, 5), (0, 1), (), ()),
}


@pytest.mark.parametrize(
    ("name", "shape", "bias", "output", "stack", "copies"),
    INFERRED.values(),
    ids=INFERRED,
)
def test_axes_are_inferred_from_the_bias(name, shape, bias, output, stack, copies):
    params = {"layer": {name: np.ones(shape), "bias": np.ones(bias)}}
    layout = infer_layout(params)
    axes = layout.resolve(params)
    found = axes[f"layer/{name}"]
    assert (found.output, found.stack, layout.undecided) == (output, stack, ())
    assert axes["layer/bias"].stack == copies


def test_what_has_two_readings_is_not_inferred(capsys):
    params = {"layer": {"kernel": np.ones((4, 4, 7)), "bias": np.ones((4, 7))}}
    layout = infer_layout(params)
    assert layout.undecided == ("layer/kernel",)
    describe(params, layout)
    assert capsys.readouterr().out.count("check") == 1
    describe(params, layout.override({"kernel": Neurons((1, 2))}))
    assert "check" not in capsys.readouterr().out


def beside(**layers):
    """Put a convolution without a bias beside layers, and a head elsewhere."""
    conv = {"kernel": np.ones((3, 3, 2, 5))}
    return {"body": {"conv": conv, **layers}, "head": {"bias": np.ones(4)}}


def attention(query, out):
    kernels = {"query": query, "out": out}
    return {"attn": {name: {"kernel": np.ones(of)} for name, of in kernels.items()}}


VECTOR, STACKED = {"scale": np.ones(6)}, {"scale": np.ones((6, 2))}
TOLD = {  # how many leaves are marked
    "a vector beside": (beside(norm=VECTOR), 0),
    "one of two": (beside(norm=VECTOR, q_norm=STACKED), 0),
    "all stacked": (beside(norm=STACKED), 1),
    "none beside": (beside(), 1),
    "one elsewhere": (beside(inner={"norm": VECTOR}), 1),
    "other taps": (beside(norm=VECTOR, conv={"kernel": np.ones((6, 3, 2, 5))}), 1),
    "too many taps": (beside(norm=VECTOR, conv={"kernel": np.ones((3,) * 5)}), 1),
    "by its scan": ({"ScanConv_0": beside()["body"]["conv"], "norm": VECTOR}, 1),
    "heads": (attention((5, 3, 4), (3, 4, 7)), 0),
    "no heads": (attention((6, 5, 7), (6, 7, 5)), 2),
    "pointwise along one axis": (
        beside(norm=VECTOR, conv={"kernel": np.ones((1, 3, 2, 5))}),
        0,
    ),
    "in a list": ({"convs": [{"kernel": np.ones((3, 3, 2, 5))}]}, 0),
    "in a list, with its bias": (
        {"convs": [{"kernel": np.ones((3, 4, 2, 5)), "bias": np.ones(5)}]},
        0,
    ),
    "a vector called kernel": ({"attention_norm": {"kernel": np.ones((6, 32))}}, 1),
    "a square query of a stack": (
        {"query": {"kernel": np.ones((8, 8, 8)), "bias": np.ones((8, 8))}},
        1,
    ),
    "a square convolution": (
        {"Conv_0": {"kernel": np.ones((3, 3, 5, 5)), "bias": np.ones(5)}},
        0,
    ),
}


@pytest.mark.parametrize(("params", "marks"), TOLD.values(), ids=TOLD)
def test_leaves_beside_a_kernel_tell_a_stack_from_a_layer(params, marks, capsys):
    describe(params)
    assert capsys.readouterr().out.count("check") == marks
    assert len(infer_layout(params).undecided) == marks


UNDECIDABLE = {  # inputs as many as outputs, and no name that tells them apart
    "transposed": {"up": {"w": np.ones((3, 3, 4, 4)), "b": np.ones(4)}},
    "torch": {"up": {"weight": np.ones((8, 8, 3, 3)), "bias": np.ones(8)}},
    "scanned": {
        "ConvTranspose_0": {"kernel": np.ones((5, 3, 8, 8)), "bias": np.ones((5, 8))}
    },
}


@pytest.mark.parametrize("params", UNDECIDABLE.values(), ids=UNDECIDABLE)
def test_a_kernel_that_may_be_transposed_is_left_undecided(params, capsys):
    layout = infer_layout(params)
    assert len(layout.undecided) == 1
    describe(params, layout)
    assert capsys.readouterr().out.count("check") == 1


def test_a_matrix_of_another_library_is_marked(capsys):
    flax, torch = {"q": {"kernel": np.ones((5, 5))}}, {"q": {"weight": np.ones((5, 5))}}
    for params, layout, marks in (
        (flax, FLAX, 0),
        (flax, TORCH, 1),
        (torch, TORCH, 0),
        (torch, FLAX, 1),
        (torch, infer_layout(torch), 0),
        (flax, infer_layout(flax), 0),
    ):
        describe(params, layout)
        assert capsys.readouterr().out.count("check") == marks


def test_lone_leaves_have_the_copies_of_the_layers_beside_them():
    layers = {
        "lin": {"weight": np.ones((6, 8, 8)), "bias": np.ones((6, 8))},
        "rms": {"weight": np.ones((6, 8))},
        "norm": {"scale": np.ones((6, 8)), "bias": np.ones((6, 8))},
        "pre": {"weight": np.ones((6, 8))},
    }
    params = {"layers": layers, "norm": {"scale": np.ones(8)}}
    layout = infer_layout(params)
    axes = layout.resolve(params)
    for name in ("layers/rms/weight", "layers/norm/scale", "layers/norm/bias"):
        assert (axes[name].output, axes[name].stack) == ((1,), (0,)), name
    assert axes["norm/scale"].stack == ()
    assert layout.undecided == ("layers/pre/weight",)


def test_an_override_that_no_leaf_matches_is_listed(capsys):
    params = {"q": {"kernel": np.ones((4, 4))}}
    describe(params, FLAX.override({"query/kernel": Neurons((0,)), "q/": Neurons(())}))
    assert capsys.readouterr().out.splitlines()[2:] == [
        "no leaf is the first to match 'query/kernel'"
    ]


def test_an_inferred_layout_is_for_its_tree_alone():
    params = {"q": {"weight": np.ones((4, 3)), "bias": np.ones(4)}}
    layout = infer_layout(params)
    assert layout.axes("q/weight", (4, 3)).output == (0,)
    with pytest.raises(ValueError, match=r"params/q/bias: not a leaf of the tree"):
        adam_mini(0.1, neurons=layout).init({"params": params})


def test_an_inferred_layout_looks_leaves_up_and_searches_no_patterns():
    layer = {"kernel": np.ones((2, 3)), "bias": np.ones(3)}
    params = {f"layer_{n}": layer for n in range(1000)}
    layout = infer_layout(params)
    assert layout.rules == () and len(layout.resolve(params)) == 2000


def test_only_what_is_trained_is_described(capsys):
    model = {"w": np.ones((3, 4)), "activation": np.tanh, "key": np.ones(2, np.uint32)}
    describe(model)
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == ["path", "w"]


def test_describe_says_which_blocks_and_that_a_bias_is_finer(capsys):
    params = {"query": {"w": np.ones((5, 12)), "b": np.ones(12)}}
    describe(params, HAIKU.override({"query/w": Neurons(blocks=((-1, 3),))}))
    assert capsys.readouterr().out.splitlines()[2].endswith("3 blocks of axis 1")
    heads = {"query": {"kernel": np.ones((5, 3, 4)), "bias": np.ones((3, 4))}}
    describe(heads, FLAX.override({"query/kernel": Neurons((1,))}))
    assert capsys.readouterr().out.splitlines()[2].endswith("coarser than its bias")
    describe(heads, FLAX.override({"query/kernel": Neurons((0,))}))
    assert capsys.readouterr().out.splitlines()[2].endswith("check")


def test_describe_does_not_mark_what_an_override_names(capsys):
    layout = FLAX.override({"scanned/kernel": Neurons((2,), stack=(0,))})
    describe({"scanned": {"kernel": np.ones((2, 6, 5))}}, layout)
    assert capsys.readouterr().out.splitlines()[1].split()[-2:] == ["6", "10"]
