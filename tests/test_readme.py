"""The first lines of the README run as pasted and print what is shown."""

import contextlib
import io
import pathlib
import re

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


def test_what_the_readme_names_is_there():
    text = README.read_text()
    for path in re.findall(r"(?:examples|tests|benchmarks)/[\w/]+\.\w+", text):
        assert (README.parent / path).exists(), path
