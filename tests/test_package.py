"""The package keeps its picture: who imports whom, and how long files are."""

import ast
import inspect
import pathlib
import subprocess
import sys

import pytest

import neuron_optax

PACKAGE = pathlib.Path(neuron_optax.__file__).parent
PICTURE = [  # a file imports only what stands in a row above its own
    {"trees", "numerics", "pieces", "architectures"},
    {"boxes"},
    {"axes", "statistics", "accumulators", "rates"},
    {"core", "projections", "rows"},
    {"strategies"},
    {"introspection", "advice", "sharding", "portable", "plot", "interop"},
    {"memory", "saved"},
    {"__main__"},
]
ROW = {name: depth for depth, names in enumerate(PICTURE) for name in names}
FILES = {
    str(path.relative_to(PACKAGE).with_suffix("")).replace("/", "."): path
    for path in PACKAGE.rglob("*.py")
}
ORACLES = sorted((pathlib.Path(__file__).parent / "reference").glob("[a-z]*.py"))


def imported(source):
    """List the modules of the package that a source imports."""
    modules = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom):
            modules.append(f"neuron_optax.{node.module}" if node.level else node.module)
        elif isinstance(node, ast.Import):
            modules.extend(alias.name for alias in node.names)
    prefix = "neuron_optax."
    return [name.removeprefix(prefix) for name in modules if name.startswith(prefix)]


def upward(name, source):
    """List the imports that do not point up; those within a row do not."""
    own = name.partition(".")[0]
    targets = {target.partition(".")[0] for target in imported(source)} - {own}
    return [target for target in sorted(targets) if ROW[target] >= ROW[own]]


@pytest.mark.parametrize("name", [name for name in FILES if name != "__init__"])
def test_a_file_imports_only_files_drawn_above_it(name):
    assert upward(name, FILES[name].read_text()) == []


def test_the_picture_notices_an_import_that_points_down():
    assert upward("core", "from neuron_optax.strategies import adam_mini")
    assert upward("axes", "import neuron_optax.rates")
    assert upward("rates", "from .core import NeuronState")
    assert not upward("core", "from neuron_optax.axes import Layout")


def test_strategies_import_none_of_each_other():
    for name, path in FILES.items():
        if name.startswith("strategies.") and not name.endswith("__init__"):
            own = [t for t in imported(path.read_text()) if t.startswith("strategies.")]
            assert set(own) <= {"strategies.alias"}


@pytest.mark.parametrize("name", FILES)
def test_a_file_is_short_enough_to_read(name):
    lines = len(FILES[name].read_text().splitlines())
    assert lines <= (450 if name.startswith("strategies.") else 300)


@pytest.mark.parametrize("path", ORACLES, ids=lambda path: path.stem)
def test_an_oracle_is_short_and_a_stranger(path):
    source = path.read_text()
    assert len(source.splitlines()) <= 40
    assert "neuron_optax" not in source and "tests" not in source


def test_importing_the_package_imports_neither_torch_nor_flax_nor_matplotlib():
    code = "import sys, neuron_optax; print(*sys.modules)"
    run = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        cwd=PACKAGE.parent,
    )
    loaded = set(run.stdout.split())
    assert "optax" in loaded
    assert not loaded & {"torch", "flax", "matplotlib", "sklearn", "tqdm"}


def test_every_public_name_is_exported_and_has_a_doctest():
    for name in neuron_optax.__all__:
        public = getattr(neuron_optax, name)
        if callable(public) or isinstance(public, type):
            assert ">>>" in public.__doc__, name
    assert sorted(neuron_optax.__all__) == sorted(
        name
        for name, value in vars(neuron_optax).items()
        if not name.startswith("_") and not inspect.ismodule(value)
    )
