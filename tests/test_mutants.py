"""Every mutant of the package is killed by the tests named beside it."""

import os
import pathlib
import shutil
import subprocess
import sys

import pytest

from tests.mutants import MUTANTS

ROOT = pathlib.Path(__file__).parents[1]


def run(folder, tests):
    """Run tests in a copy of the repository, stopping at the first failure."""
    plain = "-x", "-q", "-n0", "-m", "", "-p", "no:cacheprovider"
    command = [sys.executable, "-m", "pytest", *plain]
    return subprocess.run(
        [*command, *tests.split(maxsplit=2)],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(folder), "PYTHONDONTWRITEBYTECODE": "1"},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.fixture
def copy(tmp_path):
    """Copy what the tests need."""
    for name in ("neuron_optax", "tests"):
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / name, tmp_path / name, ignore=ignored)
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    return tmp_path


@pytest.mark.parametrize("name", MUTANTS)
def test_a_mutant_fits_the_source(name):
    mutant = MUTANTS[name]
    source = (ROOT / "neuron_optax" / mutant.file).read_text()
    assert source.count(mutant.right) == 1 and mutant.wrong != mutant.right


@pytest.mark.slow
@pytest.mark.parametrize("name", MUTANTS)
def test_a_mutant_is_killed(name, copy):
    mutant = MUTANTS[name]
    path = copy / "neuron_optax" / mutant.file
    path.write_text(path.read_text().replace(mutant.right, mutant.wrong))
    finished = run(copy, mutant.tests)
    killer = [line for line in finished.stdout.splitlines() if "FAILED" in line]
    print(f"mutant {name!r}: {killer[:1] or finished.stdout[-2000:]}")
    assert finished.returncode == 1 and killer


@pytest.mark.slow
@pytest.mark.parametrize("name", ["overflow in the momentum", "uphill", "heads merged"])
def test_without_the_mutant_the_same_tests_pass(name, copy):
    finished = run(copy, MUTANTS[name].tests)
    assert finished.returncode == 0, finished.stdout[-2000:]
