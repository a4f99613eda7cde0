"""Every public name has an example that runs, and stands in the reference."""

import importlib
import re
import runpy
import sys
from pathlib import Path

import pytest

import neuron_optax

README = (Path(__file__).parents[1] / "README.md").read_text()
(REFERENCE,) = re.findall(r"\.venv/bin/python (-m pdoc .*)$", README, re.M)
MODULES = re.findall(r"neuron_optax[.\w]*", REFERENCE)


def public(module):
    """List the functions, classes and transformations a module offers."""
    own = module.__name__
    names = getattr(module, "__all__", None) or [
        name
        for name, value in vars(module).items()
        if not name.startswith("_") and getattr(value, "__module__", "") == own
    ]
    return [name for name in names if callable(getattr(module, name))]


@pytest.mark.parametrize("name", MODULES)
def test_every_public_name_has_a_runnable_example(name):
    module = importlib.import_module(name)
    assert public(module)
    for offered in public(module):
        assert ">>>" in (getattr(module, offered).__doc__ or ""), f"{name}.{offered}"


def test_the_package_names_its_readers():
    assert MODULES[0] == "neuron_optax"
    for name in MODULES[1:]:
        assert f"`{name}`" in README and name in neuron_optax.__doc__


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:Error parsing type annotation")  # Optax's own
def test_one_command_builds_the_reference(tmp_path, monkeypatch):
    arguments = REFERENCE.replace("site", str(tmp_path)).split()
    monkeypatch.setattr(sys, "argv", arguments[1:])
    runpy.run_module("pdoc", run_name="__main__")
    for name in MODULES:
        page = (tmp_path / f"{name.replace('.', '/')}.html").read_text()
        for offered in public(importlib.import_module(name)):
            assert f'id="{offered}"' in page, f"{name}.{offered}"
        shown = re.findall(r'<div class="docstring">(.*?)</div>', page, re.S)
        assert shown and ":math:" not in "".join(shown)
