"""A rank that broadcasts by accident is an error; float64 comes by fixture."""

import os

QUICK = "--xla_backend_optimization_level=0"  # quick to compile, slow to run
os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {QUICK}".strip()

import jax  # noqa: E402  after the flags that it reads
import pytest  # noqa: E402

jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_num_cpu_devices", 8)  # simulated, for meshes

collect_ignore_glob = ["reference/*"]  # oracles have no tests and need torch


@pytest.fixture
def float64():
    """Parity and laws run in float64; models and contracts in JAX's default mode."""
    with jax.enable_x64(True):
        yield
