"""The first lines of the README run as pasted and print what is shown."""

import contextlib
import io
import pathlib
import re

import jax
import jax.numpy as jnp
import pytest

import neuron_optax
from neuron_optax import strategies
from neuron_optax.__main__ import main
from tests.cases import CASES

README = pathlib.Path(__file__).parents[1] / "README.md"


def test_the_first_lines_print_what_is_shown():
    text = README.read_text()
    code, shown = re.search(
        r"```python\n(.*?)```\n\n```text\n(.*?)```", text, re.S
    ).groups()
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(compile(code, "README.md", "exec"), {})
    assert printed.getvalue() == shown
    lines = [line for line in code.splitlines() if line]
    assert len(lines) <= 10 and text.index(code) < 1000


COMMANDS = re.findall(
    r"`python -m neuron_optax (.+?)`( prints\n\n```text\n)?", README.read_text()
)


@pytest.mark.parametrize(("command", "shown"), COMMANDS)
def test_a_command_that_is_named_runs_and_prints_what_is_shown(command, shown, capsys):
    with contextlib.suppress(SystemExit):  # of --help, which prints
        main(command.split())
    printed = capsys.readouterr().out
    assert printed and (not shown or f"`{shown}{printed}```" in README.read_text())


BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```$", README.read_text(), re.M | re.S)


def test_every_block_is_run_by_a_test():
    """Doctests run as such, the first lines above, examples in test_examples."""
    printed = [text for kind, text in BLOCKS if kind == "text"]
    scripts = [text for kind, text in BLOCKS if kind == "python" and ">>>" not in text]
    commands = [text for kind, text in BLOCKS if kind == "sh"]
    assert len(scripts) == 1 and {kind for kind, _ in BLOCKS} == {
        "python",
        "text",
        "sh",
    }
    for text in commands:
        last = text.split(" && ")[-1].strip()
        example = re.fullmatch(r"\.venv/bin/python examples/(\w+)\.py", last)
        reference = last.startswith(".venv/bin/python -m pdoc ")
        assert last == ".venv/bin/pytest" or example or reference, text
    assert len(printed) == 4  # first lines, two examples, a plan


def test_what_the_readme_names_is_there():
    text = README.read_text()
    for path in re.findall(r"(?:examples|tests|benchmarks)/[\w/]+\.\w+", text):
        assert (README.parent / path).exists(), path


FIXED = {
    "layerwise": lambda: neuron_optax.layerwise({"": 0.1}),
    "layerwise_decay": lambda: neuron_optax.layerwise_decay(0.1, 0.5, [""]),
}
ALIASES = FIXED | {
    name: lambda case=case: case.build(0.1)
    for name, case in CASES.items()
    if case.alias
}
KERNEL = {"Dense_0": {"kernel": jax.ShapeDtypeStruct((1024, 1024), jnp.float32)}}


@pytest.mark.parametrize("name", ALIASES)
def test_both_tables_of_strategies_say_how_many_bytes_each_keeps(name):
    state = jax.eval_shape(ALIASES[name]().init, KERNEL)
    size = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(state))
    expected = f"{size / 1024**2:.2f}"
    (row,) = re.findall(rf"^\| `{name}` \|(.*)\|$", README.read_text(), re.M)
    assert row.split("|")[4].strip() == expected
    first, second = re.findall(rf"^ *{name} +(.*)$", strategies.__doc__, re.M)
    assert first.split()[-1] == expected and second


def test_the_tables_name_no_strategy_that_is_not_there():
    named = re.findall(r"^\| `(\w+)` \|", README.read_text(), re.M)
    assert sorted(named) == sorted(ALIASES)
