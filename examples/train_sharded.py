"""Train a transformer on eight simulated devices; its state lies like its weights.

It learns to write Python, byte by byte, from a module of the standard library.
"""

import argparse  # whose source is learned
import inspect

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P
from tqdm import trange

import neuron_optax

jax.config.update("jax_num_cpu_devices", 8)
WIDTH, HEADS, LENGTH, BATCH, STEPS = 64, 4, 64, 32, 80
INTO, BACK = {"out_sharding": ("fsdp", "tp")}, {"out_sharding": ("tp", "fsdp")}
text = np.frombuffer(inspect.getsource(argparse).encode(), np.uint8)


class Block(nnx.Module):
    """Attention and two dense layers, each added to what came in."""

    def __init__(self, rngs):
        heads = {"kernel_metadata": {"out_sharding": ("fsdp", "tp", None)}}
        heads |= {"out_kernel_metadata": {"out_sharding": ("tp", None, "fsdp")}}
        self.attention = nnx.MultiHeadAttention(
            HEADS, WIDTH, use_bias=False, decode=False, rngs=rngs, **heads
        )
        self.norm1, self.norm2 = (nnx.RMSNorm(WIDTH, rngs=rngs) for _ in range(2))
        sides = (WIDTH, 4 * WIDTH), (4 * WIDTH, WIDTH)
        self.up, self.down = (
            nnx.Linear(*side, kernel_metadata=said, use_bias=False, rngs=rngs)
            for side, said in zip(sides, (INTO, BACK), strict=True)
        )

    def __call__(self, x):
        """Return what is as long and as wide as ``x``."""
        x = x + self.attention(self.norm1(x), mask=nnx.make_causal_mask(x[..., 0]))
        return x + self.down(nnx.gelu(self.up(self.norm2(x))))


class Writer(nnx.Module):
    """Predict the next byte."""

    def __init__(self, rngs):
        self.embed = nnx.Embed(256, WIDTH, embedding_metadata=BACK, rngs=rngs)
        self.place = nnx.Embed(LENGTH, WIDTH, embedding_metadata=BACK, rngs=rngs)
        self.block = Block(rngs)
        self.head = nnx.Linear(WIDTH, 256, kernel_metadata=INTO, rngs=rngs)

    def __call__(self, text):
        """Return logits of the byte after each byte of ``text``."""
        x = self.embed(text) + self.place(jnp.arange(LENGTH))[None]
        return self.head(self.block(x))


@nnx.jit
def train_step(model, optimizer, text):
    """Take one step and return the loss before it."""

    def loss(model):
        losses = optax.softmax_cross_entropy_with_integer_labels
        return losses(model(text[:, :-1]), text[:, 1:]).mean()

    value, gradient = nnx.value_and_grad(loss)(model)
    optimizer.update(model, gradient)
    return value


mesh = jax.make_mesh((4, 2), ("fsdp", "tp"), (jax.sharding.AxisType.Auto,) * 2)
with jax.set_mesh(mesh):
    model = Writer(nnx.Rngs(0))
    optimizer = nnx.Optimizer(model, neuron_optax.adam_mini(3e-3), wrt=nnx.Param)
    rng, losses = np.random.default_rng(0), []
    for _ in trange(STEPS):
        starts = rng.integers(len(text) - LENGTH, size=BATCH)
        batch = np.stack([text[s : s + LENGTH + 1] for s in starts]).astype(np.int32)
        lies = NamedSharding(mesh, P("fsdp"))
        losses += [train_step(model, optimizer, jax.device_put(batch, lies))]

state = optimizer.opt_state[0]
kernel, momentum, memory = (
    tree["block"]["up"]["kernel"]
    for tree in (nnx.state(model), state.direction.ema, state.memory)
)
for name, leaf in {"kernel": kernel, "momentum": momentum, "memory": memory}.items():
    array = leaf[...]
    piece = array.addressable_shards[0].data.shape
    print(f"{name:9}{array.shape!s:10} {array.sharding.spec}, a device has {piece}")
print(f"loss: {losses[0]:.2f} at first, {losses[-1]:.2f} after {STEPS} steps")
assert memory[...].sharding.spec == P(None, "tp") and losses[-1] < 2.6 < losses[0]
