"""`apollo` against apollo-torch 1.0.3, with our projections in the place of theirs.

Of an optimizer and its two projectors each file is read by itself: to import the
package needs transformers and bitsandbytes.
"""

import importlib
import importlib.metadata
import importlib.util
import sys
import types

import jax.numpy as jnp
import numpy as np
import optax
import pytest

import neuron_optax
from neuron_optax.strategies.lowrank import projection
from tests.authors.packages import (
    BIAS,
    EPS,
    MARKS,
    RATE,
    STEPS,
    Leaf,
    agree,
    apart,
    ours,
    rows,
    theirs,
)

pytestmark = MARKS

MATRICES = {  # in torch's layout
    "wide/kernel": Leaf((12, 6), "wide.weight", rows),
    "tall/kernel": Leaf((5, 9), "tall.weight", rows),
    "square/kernel": Leaf((7, 7), "square.weight", rows),
}
LEAVES = MATRICES | BIAS
RANK = 4
MINI = {"rank": 1, "scale": 128.0}
DECAY = 5.0  # so strong that its order tells
FREE = 1e30  # no norm grows that much


def tolerance(update):
    """Bound the distance if the largest entries of updates are ``update`` on average.

    Each side rounds a parameter below 1 by a quarter of an eps a step, and an update by
    half an eps some hundred times: in sums of up to seven products, which may cancel to
    a seventh of their terms, in norms, and in the last norm, which limits the next one.
    JAX corrects the bias with b2 rounded to float32, by a quarter of an eps: 1 - b2 is
    off by that over 0.001, its root by half as much.
    """
    return STEPS * EPS * (2 / 4 + update * (2 * 100 / 2 + 1 / 4 / 0.001 / 2))


UPDATE = 3 * RATE
MINI_UPDATE = 12 * RATE


@pytest.fixture
def package(monkeypatch):
    """Return their modules by name, from the only files that are read."""
    try:
        files = importlib.metadata.files("apollo-torch")
    except importlib.metadata.PackageNotFoundError:
        pytest.skip(
            "install apollo-torch by hand, pip install --no-deps apollo-torch: it "
            "requires transformers and bitsandbytes, so the extra 'authors' is without"
        )
    versions = types.ModuleType("transformers.utils.versions")
    versions.require_version = lambda requirement: None  # they ask for torch 1.5
    monkeypatch.setitem(sys.modules, versions.__name__, versions)
    paths = {file.stem: file.locate() for file in files if file.suffix == ".py"}

    def read(name):
        spec = importlib.util.spec_from_file_location(
            f"apollo_torch.{name}", paths[name]
        )
        module = importlib.util.module_from_spec(spec)
        monkeypatch.setitem(sys.modules, spec.name, module)
        spec.loader.exec_module(module)
        return module

    names = "random_projector", "svd_projector", "apollo"  # the last imports the others
    return {name: read(name) for name in names}


@pytest.fixture
def authors(package, monkeypatch):
    """Return what yields their params for given options of either group."""
    torch = importlib.import_module("torch")

    class Projector(package["random_projector"].GradientProjector):
        draws = 0

        def get_orthogonal_matrix(self, weights, rank, type, seed):
            shape = 1, rank, min(weights.shape)
            drawn = torch.tensor(
                np.array(projection(0, self.draws, shape, jnp.float32))
            )
            self.draws += 1
            return drawn[0] if type == "right" else drawn[0].T

    monkeypatch.setattr(package["apollo"], "GradientProjector", Projector)

    def run(low=None, **options):
        low = {"rank": RANK, "scale": 1.0, "update_proj_gap": 200, **(low or {})}
        low = {"scale_type": "channel", "proj": "random", "proj_type": "std", **low}

        def make(named):
            matrices = [named.pop(leaf.name) for leaf in MATRICES.values()]
            groups = [{"params": matrices, **low}, {"params": [*named.values()]}]
            return package["apollo"].AdamW(groups, RATE, **options)

        return theirs(make, LEAVES)

    return run


def apollo(**changed):
    """Yield our params."""
    return ours(neuron_optax.apollo(RATE, **{"rank": RANK, **changed}), LEAVES)


@pytest.mark.parametrize(
    ("changed", "low", "said", "update"),
    [
        pytest.param({}, {}, {}, UPDATE, id="default"),
        pytest.param(
            MINI | {"channels": "layer"},
            MINI | {"scale_type": "tensor"},
            {},
            MINI_UPDATE,
            id="mini",
        ),
        pytest.param(
            {"weight_decay": DECAY},
            {},
            {"weight_decay": DECAY},
            UPDATE,
            id="weight_decay",
        ),
        pytest.param({"scale": 2.0}, {"scale": 2.0}, {}, UPDATE, id="scale"),
        pytest.param({"period": 6}, {"update_proj_gap": 6}, {}, UPDATE, id="period"),
        pytest.param({"b1": 0.8}, {}, {"betas": (0.8, 0.999)}, UPDATE, id="b1"),
        pytest.param({"b2": 0.9}, {}, {"betas": (0.9, 0.9)}, UPDATE, id="b2"),
        pytest.param({"eps": 0.1}, {}, {"eps": 0.1}, UPDATE, id="eps"),
        pytest.param({"growth": FREE}, {}, {"disable_nl": True}, UPDATE, id="growth"),
    ],
)
def test_apollo_is_the_authors(authors, changed, low, said, update):
    agree(apollo(**changed), authors(low, **said), tolerance(update))


def test_projections_have_the_size_of_the_authors(package):
    torch = importlib.import_module("torch")
    projector = package["random_projector"].GradientProjector(RANK)
    of = torch.zeros(1, 10_000)
    drawn = projector.get_orthogonal_matrix(of, RANK, type="right", seed=1).numpy()
    mine = np.asarray(projection(0, 0, (1, *drawn.shape), jnp.float32))
    sizes = np.sqrt([np.mean(drawn**2), np.mean(mine**2)]) * RANK**0.5
    # The deviation of a root mean square of normal numbers: one over the root of twice
    # their number.
    np.testing.assert_allclose(sizes, 1, rtol=5 / np.sqrt(2 * drawn.size))


@pytest.mark.parametrize(
    ("changed", "noticed"),
    [
        pytest.param({"channels": "neuron"}, {"wide/kernel"}, id="neuron"),
        pytest.param({"channels": "layer"}, MATRICES.keys(), id="layer"),
        pytest.param({"seed": 1}, MATRICES.keys(), id="seed"),
        pytest.param({"rank": RANK - 1}, MATRICES.keys(), id="rank"),
        pytest.param({"period": 6}, MATRICES.keys(), id="period"),
        pytest.param({"growth": 1.02}, MATRICES.keys(), id="growth"),
        pytest.param({"auxiliary": "wide"}, {"wide/kernel"}, id="auxiliary"),
    ],
)
def test_comparison_notices_another_option(authors, changed, noticed):
    assert apart(apollo(**changed), authors()) == noticed


def test_comparison_notices_decay_before_the_step(authors):
    step = neuron_optax.apollo(RATE, RANK)
    optimizer = optax.chain(step, optax.add_decayed_weights(-RATE * DECAY))
    expected = authors(weight_decay=DECAY)
    assert apart(ours(optimizer, LEAVES), expected) == LEAVES.keys()


def test_comparison_notices_a_rank_that_ours_cuts_to_the_smaller_side(authors):
    assert apart(apollo(rank=16), authors({"rank": 16})) == MATRICES.keys()
