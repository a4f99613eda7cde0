"""Calls to completion, taken in turns, so that all meet the same disturbances."""

import os
import platform
import shlex
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import distributions
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
from tqdm import tqdm

PACKAGES = [
    *("jax", "jaxlib", "optax", "torch"),
    *("adam-mini", "pytorch-optimizer", "fbgemm-gpu-cpu"),
]


class Runner(NamedTuple):
    """A step that is over when it returns, and what it costs beside its time.

    Attributes:
      step: takes one step.
      state_bytes: of the optimizer's state.
      compile_s: seconds to compile it; ``None`` where nothing is compiled.
      temp_bytes: of memory beside arguments and results; ``None`` if not known.
    """

    step: Callable[[], None]
    state_bytes: int
    compile_s: float | None = None
    temp_bytes: int | None = None


def race(
    steps: Mapping[str, Callable[[], None]],
    seconds: float,
    least: int = 5,
    title: str = "rounds",
) -> dict[str, list[float]]:
    """Return the seconds of every call; one round calls each step once.

    Args:
      steps: what is called, in an order drawn anew in every round.
      seconds: after which no round begins, once there were ``least`` of them.
      least: rounds; one more comes first and does not count: it allocates.
      title: of the progress bar.
    """
    calls = {name: [] for name in steps}
    rng = np.random.default_rng(0)
    begun, first = time.perf_counter(), next(iter(calls.values()))
    bar = tqdm(desc=title, unit="round")
    while len(first) <= least or time.perf_counter() - begun < seconds:
        bar.set_postfix_str(f"{time.perf_counter() - begun:.0f} of {seconds:g} s")
        for name in rng.permutation(list(steps)):
            start = time.perf_counter()
            steps[name]()
            calls[name].append(time.perf_counter() - start)
        bar.update()
    bar.close()
    return {name: took[1:] for name, took in calls.items()}


class Comparison(NamedTuple):
    """How long calls took beside those of a baseline.

    Attributes:
      best: seconds of the shortest call.
      quartiles: seconds, the 25th, 50th and 75th percentile.
      ratio: of the shortest call to the baseline's.
      by_round: quartiles of the ratio to the baseline's call of the same round.
    """

    best: float
    quartiles: tuple[float, float, float]
    ratio: float
    by_round: tuple[float, float, float]


def compare(calls: list[float], baseline: list[float]) -> Comparison:
    """Compare the calls of one race."""
    rounds = [mine / its for mine, its in zip(calls, baseline, strict=True)]
    ratio = min(calls) / min(baseline)
    return Comparison(min(calls), quartiles(calls), ratio, quartiles(rounds))


def quartiles(values: list[float]) -> tuple[float, float, float]:
    """Return the 25th, 50th and 75th percentile."""
    low, middle, high = statistics.quantiles(values, n=4, method="inclusive")
    return low, middle, high


def listed(values: tuple[float, ...]) -> str:
    """Format quartiles with two digits."""
    return " / ".join(f"{value:.2f}" for value in values)


def table(head: list[str], rows: list[list[str]]) -> str:
    """Format a table in Markdown; the first column is text, the others are numbers."""
    lines = [head, ["---", *["--:"] * (len(head) - 1)], *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


def power(sizes: Sequence[float], times: Sequence[float]) -> float:
    """Fit the power of the size that the times grow with."""
    return float(np.polyfit(np.log(sizes), np.log(times), 1)[0])


def header(
    module: str, arguments: list[str] | None = None, **more: str
) -> dict[str, str]:
    """Say what ran and on what: command, versions, device, processor and ``more``.

    Args:
      module: what was run.
      arguments: of its command; ``None`` for those of this process.
      more: lines of its own.
    """
    arguments = sys.argv[1:] if arguments is None else arguments
    here = {of.metadata["Name"].replace("_", "-"): of.version for of in distributions()}
    versions = [f"{name} {here[name]}" for name in PACKAGES if name in here]
    found = shutil.which("git") and subprocess.run(
        ["git", "describe", "--always", "--dirty"], capture_output=True, text=True
    )
    return {
        "commit": found.stdout.strip() if found else "not known",
        "command": shlex.join(["python", "-m", module, *arguments]),
        "versions": ", ".join([f"python {platform.python_version()}", *versions]),
        "device": jax.devices()[0].device_kind,
        "cpu": f"{cpu_model()}, {os.cpu_count()} cores, "
        f"OMP_WAIT_POLICY={os.environ['OMP_WAIT_POLICY']}",
        **more,
    }


def itemized(lines: Mapping[str, str]) -> str:
    """Format a header as a list in Markdown."""
    return "\n".join(f"- {key}: {value}" for key, value in lines.items()) + "\n"


def cpu_model() -> str:
    """Name the processor, as the kernel does where it does."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    models = (line.split(":", 1)[1] for line in lines if line.startswith("model name"))
    return next(models, platform.processor()).strip()
