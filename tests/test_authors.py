"""Our steps against the packages of the algorithms' authors, in float32."""

import importlib

import jax.numpy as jnp
import numpy as np
import optax
import pytest

import neuron_optax

pytestmark = [
    pytest.mark.authors,
    pytest.mark.filterwarnings("ignore"),  # theirs to mend
]

STEPS, RATE = 20, 0.01
# Both sides round a parameter below 4 by half an eps a step; the updates are smaller.
TOLERANCE = STEPS * np.finfo(np.float32).eps * 4


@pytest.fixture
def torch():
    return importlib.import_module("torch")


def draw(seed, *shape):
    return np.random.default_rng(seed).standard_normal(shape, np.float32)


def ours(optimizer, params, gradients):
    """Yield the params after every step."""
    state = optimizer.init(params)
    for grads in gradients:
        updates, state = optimizer.update(grads, state, params)
        params = optax.apply_updates(params, updates)
        yield params


@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
def test_adam_mini_is_the_authors_on_an_mlp(torch, weight_decay):
    authors = importlib.import_module("adam_mini")
    layer = torch.nn.Linear(7, 5)
    named = [(f"mlp.{name}", leaf) for name, leaf in layer.named_parameters()]
    theirs = authors.Adam_mini(
        named, RATE, weight_decay=weight_decay, dim=8, n_heads=2, verbose=False
    )
    start = {name: jnp.asarray(leaf.detach().numpy()) for name, leaf in named}
    gradients = [
        {"mlp.weight": draw(2 * n, 5, 7), "mlp.bias": draw(2 * n + 1, 5)}
        for n in range(STEPS)
    ]
    options = {
        "weight_decay": weight_decay,
        "weight_decay_mask": {"mlp.weight": True, "mlp.bias": False},
    }
    optimizer = neuron_optax.adam_mini(RATE, neurons=neuron_optax.TORCH, **options)
    wrong = neuron_optax.adam_mini(RATE, neurons=neuron_optax.FLAX, **options)
    for grads, params in zip(gradients, ours(optimizer, start, gradients), strict=True):
        for name, leaf in named:
            leaf.grad = torch.tensor(grads[name])
        theirs.step()
        for name, leaf in named:
            np.testing.assert_allclose(
                params[name], leaf.detach(), rtol=0, atol=TOLERANCE
            )
    *_, params = ours(wrong, start, gradients)
    assert np.abs(params["mlp.weight"] - layer.weight.detach().numpy()).max() > 1e-3


def test_neuron_adagrad_on_an_embedding_is_fbgemms_rowwise_adagrad(torch):
    importlib.import_module("fbgemm_gpu")
    module = "fbgemm_gpu.split_table_batched_embeddings_ops_training"
    tables = importlib.import_module(module)
    table = tables.SplitTableBatchedEmbeddingBagsCodegen(
        [(6, 8, tables.EmbeddingLocation.HOST, tables.ComputeDevice.CPU)],
        optimizer=tables.OptimType.EXACT_ROWWISE_ADAGRAD,
        learning_rate=RATE,
        eps=1e-8,
    )
    start = draw(0, 6, 8)
    (weights,) = table.split_embedding_weights()
    weights.data.copy_(torch.tensor(start))
    gradients = [{"embedding": draw(n + 1, 6, 8)} for n in range(STEPS)]
    optimizer = neuron_optax.neuron_adagrad(RATE)
    steps = ours(optimizer, {"embedding": jnp.asarray(start)}, gradients)
    for grads, params in zip(gradients, steps, strict=True):
        rows = table(torch.arange(6), torch.arange(7))  # one bag for each row
        rows.backward(torch.tensor(grads["embedding"]))
        np.testing.assert_allclose(
            params["embedding"], weights.detach(), rtol=0, atol=TOLERANCE
        )
    assert np.abs(weights.detach().numpy() - start).max() > RATE
