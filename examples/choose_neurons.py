"""See which axes are taken for neurons, and choose them where names do not tell."""

import jax
import jax.numpy as jnp
import optax
from flax import linen as nn

from neuron_optax import FLAX, Neurons, adam_mini, describe, infer_layout


class Block(nn.Module):
    """Attention and a gated layer without biases, to be scanned."""

    @nn.compact
    def __call__(self, x, _):
        """Return the next hidden state, and nothing to collect."""
        x += nn.MultiHeadDotProductAttention(num_heads=3, name="attention")(x)
        gate = nn.Dense(24, use_bias=False, name="gate")(x)
        return x + nn.Dense(12, name="down")(nn.silu(gate)), None


class Model(nn.Module):
    """A table, five scanned blocks and a head."""

    @nn.compact
    def __call__(self, tokens):
        """Return the logits of the next token."""
        x = nn.Embed(64, 12, name="embed")(tokens)
        over_layers = {"variable_axes": {"params": 0}, "split_rngs": {"params": True}}
        x, _ = nn.scan(Block, length=5, **over_layers)(name="layers")(x, None)
        return nn.Dense(64, use_bias=False, name="head")(nn.LayerNorm(name="norm")(x))


def count(layout):
    """Return how many numbers Adam-mini keeps in place of second moments."""
    state = jax.eval_shape(adam_mini(1e-3, neurons=layout).init, params)
    return sum(leaf.size for leaf in jax.tree.leaves(optax.tree.get(state, "memory")))


tokens = jnp.zeros((2, 8), jnp.int32)
params = jax.eval_shape(Model().init, jax.random.key(0), tokens)["params"]

print("By name alone, the scanned kernels are marked: their layers would be merged.")
describe(params, FLAX)

layout = infer_layout(params)
print("\nBiases tell the rest, but for", *layout.undecided)

layout = layout.override(
    {
        "layers/gate/kernel": Neurons(stack=(0,)),  # no bias beside it
        "layers/.*(query|key)/kernel": Neurons((2,), stack=(0,)),  # one rate a head
    }
)
print("\nWith both named, nothing is left to check.")
describe(params, layout)

weights = sum(leaf.size for leaf in jax.tree.leaves(params))
print(f"\n{weights} weights, {count(FLAX)} numbers by name, {count(layout)} as chosen")
assert (weights, count(FLAX), count(layout)) == (7620, 512, 782)
