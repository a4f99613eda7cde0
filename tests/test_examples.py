"""Every example runs from an empty directory, and its own assertions hold."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
EXAMPLES = sorted((ROOT / "examples").glob("*.py"))
PICTURES = {
    "read_the_rates": [
        "rates_by_frequency.png",
        "rates_heat_map.png",
        "rates_over_training.png",
    ],
    "train_digits": ["digits_rates.png"],
    "train_recommender": ["recommender.png"],
}
SHOWN = {"train_digits": "strategy  ", "train_recommender": "tables  "}  # in README
QUICK = {"choose_neurons", "compose_a_strategy", "train_digits", "train_flax_linen"}
RUN = [
    pytest.param(
        path, id=path.stem, marks=[pytest.mark.slow] * (path.stem not in QUICK)
    )
    for path in EXAMPLES
]


@pytest.mark.parametrize("example", RUN)
def test_example_runs_and_writes_its_pictures(example, tmp_path):
    paths = str(ROOT), os.environ.get("PYTHONPATH", "")
    finished = subprocess.run(
        [sys.executable, str(example)],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(paths)},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert finished.returncode == 0, finished.stderr
    if example.stem in SHOWN:
        head, *rows = cells(table_in_readme(SHOWN[example.stem]))
        printed = cells(finished.stdout)
        assert head in printed
        assert {row[0] for row in rows} <= {row[0] for row in printed}
    written = sorted(path.name for path in tmp_path.iterdir())
    assert written == PICTURES.get(example.stem, [])
    for picture in written:
        content = (tmp_path / picture).read_bytes()
        assert content.startswith(b"\x89PNG\r\n\x1a\n")
        assert 50_000 < len(content) < 500_000


def table_in_readme(head):
    text = (ROOT / "README.md").read_text()
    (table,) = re.findall(rf"^```text\n({head}.*?)^```$", text, re.M | re.S)
    return table


def cells(table):
    """Split the lines of a table; its figures are a machine's."""
    return [re.split("  +", line) for line in table.splitlines() if line]


def test_there_are_examples():
    assert {"train_digits", "train_flax_linen"} <= {path.stem for path in EXAMPLES}
