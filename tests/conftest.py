"""A rank that broadcasts by accident is an error; float64 comes by fixture.

Compiled programs are kept beside pytest's own cache, for workers, lanes and mutants
that run the same ones.
"""

import os
import pathlib

QUICK = "--xla_backend_optimization_level=0"  # quick to compile, slow to run
os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {QUICK}".strip()

PROGRAMS = pathlib.Path(__file__).parents[1] / ".pytest_cache" / "programs"
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(PROGRAMS))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")

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
