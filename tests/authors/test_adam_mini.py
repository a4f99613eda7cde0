"""`adam_mini` against adam-mini 1.1.1, every branch of the authors' partition."""

import importlib

import numpy as np
import pytest

import neuron_optax
from neuron_optax import ADAM_MINI, FLAX, PER_ENTRY, PER_LAYER, Neurons
from tests.authors.packages import (
    ADAM_TOLERANCE,
    MARKS,
    RATE,
    Leaf,
    agree,
    apart,
    folded_rows,
    ours,
    rows,
    theirs,
)

pytestmark = MARKS

WIDTH, HEADS, DIM, TOKENS = 12, 4, 3, 10
ATTENTION = "Block_0/attention"
# The authors look for parts of names, and spare biases and norms from decay.
PER_HEAD = {f"{ATTENTION}/query/kernel", f"{ATTENTION}/key/kernel"}
SCALARS = {"Block_0/LayerNorm_0/scale", "Block_0/temperature"}


def transformer(kv_heads):
    """Return one block, its embedding and its head, with every kind of leaf."""
    leaves = {"Embed_0/embedding": Leaf((TOKENS, WIDTH), "embed_tokens.weight")}
    heads = {"query": HEADS, "key": kv_heads, "value": kv_heads}
    for part, count in heads.items():
        path, name = f"{ATTENTION}/{part}", f"self_attn.{part[0]}_proj"
        leaves[f"{path}/kernel"] = Leaf((WIDTH, count, DIM), f"{name}.weight", rows)
        leaves[f"{path}/bias"] = Leaf((count, DIM), f"{name}.bias", np.ravel)
    out = Leaf((HEADS, DIM, WIDTH), "self_attn.o_proj.weight", folded_rows)
    return leaves | {
        f"{ATTENTION}/out/kernel": out,
        f"{ATTENTION}/out/bias": Leaf((WIDTH,), "self_attn.o_proj.bias"),
        "Block_0/LayerNorm_0/scale": Leaf((WIDTH,), "input_layernorm.weight"),
        "Block_0/LayerNorm_0/bias": Leaf((WIDTH,), "input_layernorm.bias"),
        "Block_0/Dense_0/kernel": Leaf((WIDTH, 7), "mlp.up_proj.weight", rows),
        "Block_0/Dense_0/bias": Leaf((7,), "mlp.up_proj.bias"),
        "Block_0/Dense_1/kernel": Leaf((7, WIDTH), "feed_forward.down.weight", rows),
        "Block_0/temperature": Leaf((3, 5), "temperature"),
        "head/kernel": Leaf((WIDTH, TOKENS), "lm_head.weight", rows),
    }


def authors(weight_decay=0.0, eps=1e-8, also_per_head=()):
    """Return what makes the authors' optimizer from named parameters."""
    package = importlib.import_module("adam_mini")

    def make(named):
        optimizer = package.Adam_mini(
            named.items(),
            RATE,
            eps=eps,
            weight_decay=weight_decay,
            dim=WIDTH,
            n_heads=HEADS,
            verbose=False,
        )
        optimizer.wqk_names.update(also_per_head)
        return optimizer

    return make


def what_they_decay(leaves):
    spared = lambda name: "norm" in name or "bias" in name
    return {path: not spared(leaf.name) for path, leaf in leaves.items()}


@pytest.mark.parametrize(
    ("kv_heads", "changed"),
    [
        pytest.param(HEADS, {}, id="default"),
        pytest.param(2, {}, id="grouped"),
        pytest.param(2, {"weight_decay": 0.1}, id="weight_decay"),
        pytest.param(HEADS, {"eps": 0.1}, id="eps"),
    ],
)
def test_adam_mini_of_a_transformer_is_the_authors(kv_heads, changed):
    leaves = transformer(kv_heads)
    optimizer = neuron_optax.adam_mini(
        RATE, **changed, weight_decay_mask=what_they_decay(leaves), neurons=ADAM_MINI
    )
    expected = theirs(authors(**changed), leaves)
    agree(ours(optimizer, leaves), expected, ADAM_TOLERANCE)


@pytest.mark.parametrize(
    ("layout", "noticed"),
    [
        pytest.param(FLAX, PER_HEAD | SCALARS, id="FLAX"),
        pytest.param(
            PER_ENTRY,
            {path for path in transformer(2) if not path.endswith("bias")},
            id="PER_ENTRY",
        ),
        pytest.param(PER_LAYER, set(transformer(2)) - SCALARS, id="PER_LAYER"),
    ],
)
def test_comparison_notices_every_leaf_with_other_neurons(layout, noticed):
    leaves = transformer(2)
    optimizer = neuron_optax.adam_mini(RATE, neurons=layout)
    assert apart(ours(optimizer, leaves), theirs(authors(), leaves)) == noticed


def test_comparison_notices_decay_of_what_the_authors_spare():
    leaves = transformer(2)
    optimizer = neuron_optax.adam_mini(RATE, weight_decay=0.1, neurons=ADAM_MINI)
    spared = {path for path, decays in what_they_decay(leaves).items() if not decays}
    assert apart(ours(optimizer, leaves), theirs(authors(0.1), leaves)) == spared


GROUPS = 2  # of heads that share one key and one value
BLOCKS = HEADS + 2 * GROUPS
FUSED = {"qkv/kernel": Leaf((WIDTH, BLOCKS * DIM), "wqkv", rows)}


class Cut:
    """The authors' optimizer of queries, keys and values, parts of a fused weight."""

    def __init__(self, named):
        self.whole = named["wqkv"]
        parts = [part.requires_grad_() for part in self.cut(self.whole.data)]
        names = ["q_proj", "k_proj", "v_proj"]
        self.parts = dict(zip(names, parts, strict=True))  # views: the whole moves, too
        self.optimizer = authors(0.1, also_per_head=["v_proj"])(self.parts)

    def cut(self, leaf):
        """Return the rows of queries, keys and values."""
        return leaf.split([HEADS * DIM, GROUPS * DIM, GROUPS * DIM])

    def step(self):
        """Take a step of every part."""
        grads = self.cut(self.whole.grad)
        for part, grad in zip(self.parts.values(), grads, strict=True):
            part.grad = grad
        self.optimizer.step()


def test_blocks_of_a_fused_kernel_are_the_authors_heads_of_grouped_attention():
    heads = Neurons(output=(1,), blocks=((1, BLOCKS),))
    optimizer = neuron_optax.adam_mini(RATE, weight_decay=0.1, neurons=heads)
    agree(ours(optimizer, FUSED), theirs(Cut, FUSED), ADAM_TOLERANCE)


@pytest.mark.parametrize("blocks", [1, BLOCKS // 2, BLOCKS * DIM])
def test_comparison_notices_another_number_of_blocks(blocks):
    heads = Neurons(output=(1,), blocks=((1, blocks),))
    optimizer = neuron_optax.adam_mini(RATE, weight_decay=0.1, neurons=heads)
    assert apart(ours(optimizer, FUSED), theirs(Cut, FUSED)) == FUSED.keys()
