"""How does a step that touches few rows grow with the table, and how with the batch?

The dense step grows with the table. The sparse one should not: ``row_growth.png``.
"""

import argparse
import os
import time
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import matplotlib
import numpy as np
from matplotlib.figure import Figure
from tqdm import tqdm

import neuron_optax
from benchmarks.row_contenders import dense_step, sparse_step
from benchmarks.timing import header, itemized, power

WIDTH = 16
SIZES = [10**4, 10**5, 10**6, 10**7]
BATCHES = [10**2, 10**3, 10**4, 10**5]
DENSE_BATCH = 10**3
DENSE = neuron_optax.neuron_adagrad(0.1, neurons=neuron_optax.ROWS)
SPARSE = neuron_optax.row_adagrad(0.1)
BATCH_COLORS = ["#DDAA33", "#CC6677", "#44AA99", "#332288"]
SIZE_COLORS = ["#88CCEE", "#D55E00", "#0072B2", "#882255"]
MARKERS = ["o", "s", "^", "D"]


class Case(NamedTuple):
    """Which step, of a table of how many rows, for how many ids."""

    kind: str
    rows: int
    batch: int


def main() -> None:
    """Print a table and the exponents, and draw both."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.row_growth", description=__doc__
    )
    parser.add_argument("--rounds", type=int, default=12, help="turns of each step")
    parser.add_argument("--most", type=int, default=SIZES[-1], help="rows of a table")
    parser.add_argument("--figure", default="benchmarks/row_growth.png")
    options = parser.parse_args()
    sizes = [size for size in SIZES if size <= options.most]
    if options.rounds < 1 or len(sizes) < 2:
        parser.error(f"needs --rounds of 1 or more and --most of {SIZES[1]} or more")
    lines = header(
        "benchmarks.row_growth",
        tables=f"float32 rows of {WIDTH} numbers; uniform ids, others in every call",
        steps="row_adagrad, and neuron_adagrad of the dense gradient; donated; "
        "milliseconds of the best call",
    )
    print(itemized(lines))
    best = measure(sizes, options.rounds)
    print(table(best, sizes))
    print(exponents(best, sizes))
    draw(best, sizes, options.figure)
    print(f"drawn in {options.figure}")


def measure(sizes: list[int], rounds: int) -> dict[Case, float]:
    """Return the milliseconds of the best call of every case; they take turns.

    One table of each size serves all its steps, so that the largest fits in memory.
    """
    rng = np.random.default_rng(0)
    cases = [Case("sparse", rows, batch) for rows in sizes for batch in BATCHES]
    cases += [Case("dense", rows, DENSE_BATCH) for rows in sizes]
    tables = {rows: jnp.zeros((rows, WIDTH)) for rows in sizes}
    states = {(c.kind, c.rows): _optimizer(c).init(tables[c.rows]) for c in cases}
    targets = {batch: jnp.ones((batch, WIDTH)) for batch in BATCHES}
    steps = {}
    for case in tqdm(cases, desc="compile", unit="step"):
        args = tables[case.rows], states[case.kind, case.rows]
        step = (sparse_step if case.kind == "sparse" else dense_step)(_optimizer(case))
        ids = jnp.zeros(case.batch, jnp.int32)
        donating = jax.jit(step, donate_argnums=(0, 1))
        steps[case] = donating.lower(*args, ids, targets[case.batch]).compile()

    best = dict.fromkeys(cases, float("inf"))
    for _ in tqdm(range(rounds), desc="rounds", unit="round"):
        for case in [cases[place] for place in rng.permutation(len(cases))]:
            carried = tables[case.rows], states[case.kind, case.rows]
            for call in range(2 if case.kind == "dense" else 4):
                ids = jnp.asarray(rng.integers(case.rows, size=case.batch), jnp.int32)
                start = time.perf_counter()
                carried = steps[case](*carried, ids, targets[case.batch])
                jax.block_until_ready(carried)
                if call:  # the first finds what another case left behind
                    seconds = time.perf_counter() - start
                    best[case] = min(best[case], 1e3 * seconds)
            tables[case.rows], states[case.kind, case.rows] = carried
    return best


def _optimizer(case: Case) -> Any:
    return SPARSE if case.kind == "sparse" else DENSE


def table(best: dict[Case, float], sizes: list[int]) -> str:
    """Format one row per size of the table, one column per batch."""
    columns = [("sparse", batch) for batch in BATCHES] + [("dense", DENSE_BATCH)]
    heads = [f"{kind}, {batch:,} ids" for kind, batch in columns]
    rows = [" | ".join(["rows of the table", *heads]), " | ".join(["--:"] * 6)]
    for size in sizes:
        times = [f"{best[Case(kind, size, batch)]:.2f}" for kind, batch in columns]
        rows.append(" | ".join([f"{size:,}", *times]))
    return "\n".join([*(f"| {row} |" for row in rows), ""])


def exponents(best: dict[Case, float], sizes: list[int]) -> str:
    """Fit the powers of table and batch that the milliseconds grow with."""
    sparse = lambda rows, batch: best[Case("sparse", rows, batch)]
    by_batch = [power(sizes, [sparse(r, b) for r in sizes]) for b in BATCHES]
    by_size = [power(BATCHES, [sparse(r, b) for b in BATCHES]) for r in sizes]
    dense = power(sizes, [best[Case("dense", rows, DENSE_BATCH)] for rows in sizes])
    listed = lambda values, form: ", ".join(format(value, form) for value in values)
    return "\n".join(
        [
            f"sparse grows with the power {listed(by_batch, '.2f')} of the table, for "
            f"batches of {listed(BATCHES, ',')}",
            f"dense grows with the power {dense:.2f} of the table",
            f"sparse grows with the power {listed(by_size, '.2f')} of the batch, for "
            f"tables of {listed(sizes, ',')}",
        ]
    )


def draw(best: dict[Case, float], sizes: list[int], path: str) -> None:
    """Draw milliseconds against rows of the table, and against ids of a batch."""
    matplotlib.rcParams.update({"font.size": 14, "legend.fontsize": 12})
    figure = Figure(figsize=(13, 6), dpi=100, layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True)
    style = {"lw": 2.5, "ms": 8}
    for batch, color, marker in zip(BATCHES, BATCH_COLORS, MARKERS, strict=True):
        times = [best[Case("sparse", rows, batch)] for rows in sizes]
        label = f"sparse, {batch:,} ids"
        left.plot(sizes, times, marker, ls="-", color=color, label=label, **style)
    for rows, color, marker in zip(sizes, SIZE_COLORS, MARKERS, strict=False):
        times = [best[Case("sparse", rows, batch)] for batch in BATCHES]
        label = f"sparse, {rows:,} rows"
        right.plot(BATCHES, times, marker, ls="-", color=color, label=label, **style)
    times = [best[Case("dense", rows, DENSE_BATCH)] for rows in sizes]
    label = f"dense, {DENSE_BATCH:,} ids"
    left.plot(sizes, times, "x--", color="black", mew=2.5, label=label, **style)
    left.set(title="against the table", xlabel="rows of the table")
    left.set_ylabel("best step [ms]")
    right.set(title="against the batch", xlabel="ids in a batch")
    for axes in (left, right):
        axes.set(xscale="log", yscale="log")
        axes.yaxis.set_major_formatter("{x:g}")
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(frameon=False, loc="upper left")
    figure.suptitle(
        f"Row-wise AdaGrad, rows of {WIDTH} float32, {os.cpu_count()} CPU cores"
    )
    figure.savefig(path)


if __name__ == "__main__":
    main()
