"""Steps that touch few rows of a table: ours, dense ones, torch's and FBGEMM's."""

import importlib
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

import neuron_optax
from neuron_optax.memory import state_bytes

RATE, EPS = 0.1, 1e-8


class Contender(NamedTuple):
    """A step that is over when it returns, what makes ids for it, and its memory."""

    step: Callable[[Any], None]
    load: Callable[[np.ndarray], Any]
    temp_bytes: int | None
    state_bytes: int


def dense_step(optimizer: optax.GradientTransformation) -> Callable[..., Any]:
    """Return a step whose gradient is as large as the table."""

    def step(table, state, ids, target):
        grads = jax.grad(lambda table: loss(table[ids], target))(table)
        updates, state = optimizer.update(grads, state, table)
        return optax.apply_updates(table, updates), state

    return step


def sparse_step(optimizer: optax.GradientTransformation) -> Callable[..., Any]:
    """Return a step that touches the rows of its ids alone."""
    moving = optax.with_extra_args_support(optimizer)

    def step(table, state, ids, target):
        rows = neuron_optax.unique_rows(ids, len(table))
        compact = neuron_optax.take_rows(table, rows)
        grads = jax.grad(lambda compact: loss(compact[rows.slots], target))(compact)
        updates, state = moving.update(grads, state, compact, row_ids=rows)
        return neuron_optax.apply_row_updates(table, updates, rows), state

    return step


def loss(looked_up: jax.Array, target: jax.Array) -> jax.Array:
    """Return half the squared distance; its gradient is the difference."""
    return 0.5 * jnp.sum((looked_up - target) ** 2)


def compiled(
    step: Callable[..., Any],
    optimizer: optax.GradientTransformation,
    start: np.ndarray,
    target: np.ndarray,
) -> Contender:
    """Compile table, state, ids, target -> table, state; the old are overwritten."""
    load = lambda ids: jnp.asarray(ids, jnp.int32)
    table, goal = jnp.array(start), jnp.array(target)
    state = jax.jit(optimizer.init)(table)
    size = state_bytes(optimizer, table)
    ids = load(np.zeros(len(target)))
    call = jax.jit(step, donate_argnums=(0, 1)).lower(table, state, ids, goal).compile()
    carried = [(table, state)]

    def run(ids):
        carried[0] = jax.block_until_ready(call(*carried[0], ids, goal))

    memory = call.memory_analysis()
    return Contender(run, load, memory and memory.temp_size_in_bytes, size)


def by_torch(name: str, start: np.ndarray, target: np.ndarray) -> Contender:
    """Make bags of one id, gradients of touched rows and an optimizer of those."""
    torch = importlib.import_module("torch")
    table = torch.nn.EmbeddingBag(
        *start.shape, mode="sum", sparse=True, _weight=torch.tensor(start)
    )
    kind = torch.optim.SparseAdam if "Adam" in name else torch.optim.Adagrad
    optimizer = kind(list(table.parameters()), lr=RATE, eps=EPS)
    goal, offsets = torch.tensor(target), torch.arange(len(target))

    def run(ids):
        optimizer.zero_grad()
        looked_up = table(ids, offsets)
        looked_up.backward(looked_up.detach() - goal)
        optimizer.step()

    run(offsets % len(start))  # SparseAdam makes its state in its first step
    kept = [v for state in optimizer.state.values() for v in state.values()]
    size = sum(v.nbytes for v in kept if isinstance(v, torch.Tensor))
    return Contender(run, torch.tensor, None, size)


def by_fbgemm(name: str, start: np.ndarray, target: np.ndarray) -> Contender:
    """Make a table whose backward pass moves it, and bags of one id.

    Two features look half of the ids up each: for those FBGEMM has a kernel that takes
    a third of the time of the one for a single feature.
    """
    torch = importlib.import_module("torch")
    importlib.import_module("fbgemm_gpu")
    module = "fbgemm_gpu.split_table_batched_embeddings_ops_training"
    tables = importlib.import_module(module)
    features = 2 if len(target) % 2 == 0 else 1
    place = tables.EmbeddingLocation.HOST, tables.ComputeDevice.CPU
    table = tables.SplitTableBatchedEmbeddingBagsCodegen(
        [(*start.shape, *place)],
        feature_table_map=[0] * features,
        optimizer=tables.OptimType[name.split()[-1]],
        learning_rate=RATE,
        eps=EPS,
    )
    (weights,) = table.split_embedding_weights()
    weights.data.copy_(torch.tensor(start))
    apart = torch.tensor(target).unflatten(0, (features, -1))
    goal = apart.transpose(0, 1).flatten(1)  # features lie side by side
    offsets = torch.arange(len(target) + 1)

    def run(ids):
        looked_up = table(ids, offsets)
        looked_up.backward(looked_up.detach() - goal)

    kept = [v for states in table.split_optimizer_states() for v in states]
    return Contender(run, torch.tensor, None, sum(v.nbytes for v in kept))
