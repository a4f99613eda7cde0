"""`rowwise_adagrad` against the tables of FBGEMM and the optimizer of torchrec."""

import importlib
import importlib.util
import pathlib

import numpy as np
import pytest

import neuron_optax
from neuron_optax import PER_ENTRY, Neurons
from tests.authors.packages import (
    EMBEDDING,
    MARKS,
    RATE,
    STEPS,
    agree,
    apart,
    draw,
    ours,
    start,
    theirs,
)

pytestmark = MARKS

TOKENS, WIDTH = EMBEDDING["embedding"].shape
BAGS, IN_BAG = 3, 2  # for each feature; of nine tokens some are absent, some twice
MODES = {"none": {}, "l2": {"decay": "l2"}, "decouple": {"decay": "decoupled"}}
DECAY = 2.0


def batches(features):
    """Return the tokens of every bag and the gradient of its sum, for every step."""
    shape = features, BAGS
    tokens = np.random.default_rng(0).integers(TOKENS, size=(STEPS, *shape, IN_BAG))
    size = np.exp(2 * draw(1, WIDTH))
    return [(of, size * draw((2, n), *shape, WIDTH)) for n, of in enumerate(tokens)]


def summed(tokens, grads):
    """Return the gradient of a table: of a token, the sum over where it occurs."""
    table = np.zeros((TOKENS, WIDTH), np.float32)
    np.add.at(table, tokens, grads[:, :, None])
    return {"embedding": table}


def fbgemm(mode, features=2, eps=1e-8):
    """Yield a table of FBGEMM after every step.

    On CPUs one that a single feature looks up has a kernel of its own: no decay.
    """
    torch = importlib.import_module("torch")
    importlib.import_module("fbgemm_gpu")
    module = "fbgemm_gpu.split_table_batched_embeddings_ops_training"
    tables = importlib.import_module(module)
    place = tables.EmbeddingLocation.HOST, tables.ComputeDevice.CPU
    table = tables.SplitTableBatchedEmbeddingBagsCodegen(
        [(TOKENS, WIDTH, *place)],
        feature_table_map=[0] * features,
        optimizer=tables.OptimType.EXACT_ROWWISE_ADAGRAD,
        learning_rate=RATE,
        eps=eps,
        weight_decay=0.0 if mode == "none" else DECAY,
        weight_decay_mode=tables.WeightDecayMode[mode.upper()],
    )
    (weights,) = table.split_embedding_weights()
    weights.data.copy_(torch.tensor(start(EMBEDDING)["embedding"]))
    offsets = torch.arange(0, features * BAGS * IN_BAG + 1, IN_BAG)
    for tokens, grads in batches(features):
        bags = torch.tensor(grads).transpose(0, 1).flatten(1)  # features side by side
        table(torch.tensor(tokens.ravel()), offsets).backward(bags)
        yield {"embedding": weights.detach().numpy().copy()}


def rowwise(mode, features=2, **options):
    """Yield our table after every step."""
    decay = 0.0 if mode == "none" else DECAY
    options = {"eps": 1e-8, **MODES[mode], **options}
    optimizer = neuron_optax.rowwise_adagrad(RATE, weight_decay=decay, **options)
    return ours(
        optimizer, EMBEDDING, grads=[summed(*batch) for batch in batches(features)]
    )


@pytest.mark.parametrize("eps", [1e-8, 0.1])
@pytest.mark.parametrize(
    ("mode", "features"), [("none", 1), ("none", 2), ("l2", 2), ("decouple", 2)]
)
def test_rowwise_adagrad_of_a_few_rows_is_fbgemms(mode, features, eps):
    agree(rowwise(mode, features, eps=eps), fbgemm(mode, features, eps))


@pytest.mark.parametrize(
    ("mode", "options"),
    [
        pytest.param("none", {"neurons": Neurons((1,))}, id="columns"),
        pytest.param("none", {"neurons": PER_ENTRY}, id="entries"),
        pytest.param("l2", {"decay": "decoupled"}, id="decoupled"),
        pytest.param("decouple", {"decay": "l2"}, id="l2"),
        pytest.param("decouple", {"lazy": False}, id="absent-decoupled"),
        pytest.param("l2", {"lazy": False}, id="absent-l2"),
    ],
)
def test_comparison_notices_another_axis_or_decay(mode, options):
    assert apart(rowwise(mode, **options), fbgemm(mode)) == {"embedding"}


def torchrec(**options):
    """Return what makes torchrec's optimizer, from the one file that has it."""
    package = importlib.util.find_spec("torchrec")  # importing it needs gigabytes
    if package is None:
        pytest.skip(
            "install torchrec by hand, pip install --no-deps torchrec: the rest of it "
            "requires gigabytes of CUDA, so the extra 'authors' is without"
        )
    (root,) = package.submodule_search_locations
    file = pathlib.Path(root, "optim", "rowwise_adagrad.py")
    spec = importlib.util.spec_from_file_location("rowwise_adagrad", file)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return lambda named: module.RowWiseAdagrad(named.values(), RATE, **options)


@pytest.mark.parametrize(
    "changed",
    [
        pytest.param({}, id="default"),
        pytest.param({"weight_decay": DECAY}, id="weight_decay"),
        pytest.param({"eps": 0.1}, id="eps"),
        pytest.param({"initial_accumulator_value": 0.5}, id="initial"),
    ],
)
def test_rowwise_adagrad_of_all_rows_is_torchrecs(changed):
    optimizer = neuron_optax.rowwise_adagrad(RATE, **changed, decay="l2", lazy=False)
    agree(ours(optimizer, EMBEDDING), theirs(torchrec(**changed), EMBEDDING))


@pytest.mark.parametrize(
    "neurons", [Neurons((1,)), PER_ENTRY], ids=["columns", "entries"]
)
def test_comparison_with_torchrec_notices_another_axis(neurons):
    optimizer = neuron_optax.rowwise_adagrad(RATE, neurons=neurons)
    expected = theirs(torchrec(), EMBEDDING)
    assert apart(ours(optimizer, EMBEDDING), expected) == {"embedding"}
