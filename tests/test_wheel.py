"""The wheel holds the package alone and works in an environment of its own."""

import pathlib
import subprocess
import sys
import venv
import zipfile

import pytest

ROOT = pathlib.Path(__file__).parents[1]

pytestmark = pytest.mark.slow

CODE = """
import jax.numpy as jnp, neuron_optax
params = {"Dense_0": {"kernel": jnp.ones((3, 2)), "bias": jnp.ones(2)}}
neuron_optax.describe(params)
optimizer = neuron_optax.adam_mini(0.1)
updates, _ = optimizer.update(params, optimizer.init(params), params)
print(neuron_optax.__file__, updates["Dense_0"]["kernel"].shape)
"""


def test_the_wheel_holds_the_package_alone_and_works_alone(tmp_path):
    def run(*command):
        done = subprocess.run(
            command, cwd=tmp_path, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    pip = ("-m", "pip", "--disable-pip-version-check")
    run(sys.executable, *pip, "wheel", "--no-deps", "-w", str(tmp_path), str(ROOT))
    (wheel,) = tmp_path.glob("*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    assert {name.partition("/")[0].partition("-")[0] for name in names} == {
        "neuron_optax"
    }
    assert "neuron_optax/py.typed" in names and "neuron_optax/core.py" in names
    venv.create(tmp_path / "alone", with_pip=True)
    python = str(tmp_path / "alone" / "bin" / "python")
    run(python, *pip, "install", str(wheel))
    printed = run(python, "-c", CODE)
    assert "Dense_0/kernel" in printed and "alone" in printed and "(3, 2)" in printed
    assert "torch" not in run(python, *pip, "list")
