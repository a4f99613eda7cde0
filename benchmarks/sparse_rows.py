"""How long does a step that touches few rows of a table take, beside the dense step?

A step looks the rows of a batch up, has the gradient of a cheap loss by them, and moves
table and state. All contenders meet the same batches, and the same disturbances: they
take turns of a few calls, in an order drawn anew for every round.
"""

import argparse
import importlib.util
import statistics
import time

import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

import neuron_optax
from benchmarks.row_contenders import (
    EPS,
    RATE,
    Contender,
    by_fbgemm,
    by_torch,
    compiled,
    dense_step,
    sparse_step,
)
from benchmarks.timing import header, itemized, listed, quartiles

ROWS = neuron_optax.ROWS
DENSE = {
    "neuron_adagrad, dense": neuron_optax.neuron_adagrad(RATE, eps=EPS, neurons=ROWS),
    "rowwise_adagrad, dense": neuron_optax.rowwise_adagrad(RATE, eps=EPS, neurons=ROWS),
}
SPARSE = {
    "row_adagrad": neuron_optax.row_adagrad(RATE, eps=EPS),
    "row_adam_mini, catch_up": neuron_optax.row_adam_mini(RATE, untouched="catch_up"),
}
PACKAGES = {  # of the other contenders
    "torch sparse Adagrad": "torch",
    "torch SparseAdam": "torch",
    "fbgemm EXACT_ROWWISE_ADAGRAD": "fbgemm_gpu",
}
TURN = 3  # calls, of which the first finds what another left behind: it does not count
OURS = "row_adagrad"
BARS = [  # ids, other contender, how many times as fast ours should be
    ("uniform", "neuron_adagrad, dense", 50.0),
    ("Zipf(1.2)", "neuron_adagrad, dense", 50.0),
    ("uniform", "torch sparse Adagrad", 2.0),
    ("uniform", "fbgemm EXACT_ROWWISE_ADAGRAD", 1 / 1.5),
]


def main() -> None:
    """Print what ran, on what, a table for either kind of ids, and the bars."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.sparse_rows", description=__doc__
    )
    parser.add_argument("--rows", type=int, default=1_000_000, help="of the table")
    parser.add_argument("--width", type=int, default=64, help="numbers in a row")
    parser.add_argument("--batch", type=int, default=4096, help="ids in a batch")
    parser.add_argument("--rounds", type=int, default=15, help="turns of each step")
    options = parser.parse_args()
    if min(vars(options).values()) < 1:
        parser.error("needs at least 1 of everything")
    print(itemized(described(options)))
    contenders = build(options)
    ids = batches(options)
    calls = measure(contenders, ids)
    for kind, drawn in ids.items():
        distinct = statistics.mean(len(np.unique(batch)) for batch in drawn)
        print(f"{kind} ids, {distinct:,.0f} distinct in the mean batch\n")
        print(table(contenders, calls[kind]))
    print(bars(calls))


def batches(options: argparse.Namespace) -> dict[str, np.ndarray]:
    """Draw the batch of every call; of Zipf's law frequent ids lie anywhere."""
    rng = np.random.default_rng(0)
    shape = TURN * options.rounds, options.batch
    frequency = np.arange(1.0, options.rows + 1) ** -1.2
    ranks = rng.choice(options.rows, shape, p=frequency / frequency.sum())
    return {
        "uniform": rng.integers(options.rows, size=shape),
        "Zipf(1.2)": rng.permutation(options.rows)[ranks],
    }


def build(options: argparse.Namespace) -> dict[str, Contender]:
    """Make every contender whose package is there, from the same table and target."""
    rng = np.random.default_rng(1)
    start = 0.1 * rng.standard_normal((options.rows, options.width), np.float32)
    target = rng.standard_normal((options.batch, options.width), np.float32)
    contenders = {}
    for name, optimizer in (DENSE | SPARSE).items():
        step = sparse_step if name in SPARSE else dense_step
        contenders[name] = compiled(step(optimizer), optimizer, start, target)
    for name, package in PACKAGES.items():
        if importlib.util.find_spec(package) is None:
            print(f"{name} is left out: {package} is not installed\n")
        else:
            make = by_fbgemm if package == "fbgemm_gpu" else by_torch
            contenders[name] = make(name, start, target)
    return contenders


def measure(
    contenders: dict[str, Contender], ids: dict[str, np.ndarray]
) -> dict[str, dict[str, list[float]]]:
    """Return by kind of ids and contender the seconds of every call that counts."""
    calls = {kind: {name: [] for name in contenders} for kind in ids}
    turns = [(kind, name) for kind in ids for name in contenders]
    rounds = min(map(len, ids.values())) // TURN
    rng = np.random.default_rng(2)
    for number in tqdm(range(rounds), desc="rounds", unit="round"):
        for turn in rng.permutation(len(turns)):
            kind, name = turns[turn]
            contender = contenders[name]
            for call in range(TURN):
                batch = contender.load(ids[kind][TURN * number + call])
                start = time.perf_counter()
                contender.step(batch)
                if call:
                    calls[kind][name].append(time.perf_counter() - start)
    return calls


def described(options: argparse.Namespace) -> dict[str, str]:
    """Say what ran: command, versions, processor and shapes."""
    size = options.rows * options.width * jnp.float32.dtype.itemsize
    return header(
        "benchmarks.sparse_rows",
        table=f"float32 of ({options.rows:,}, {options.width}), {size:,} bytes",
        batch=f"{options.batch:,} ids",
        step="lookup, gradient, update of table and state; in JAX both are donated",
        calls=f"{options.rounds} turns of {TURN}, other ids in each; the first of a "
        "turn does not count",
        threads="of torch and fbgemm one per core; of JAX as it likes",
    )


def table(contenders: dict[str, Contender], calls: dict[str, list[float]]) -> str:
    """Format one row per contender; the first is what the others are compared with."""
    first = next(iter(calls.values()))
    rows = [
        "contender | min ms | quartiles ms | times as fast by the minima | "
        "quartiles by call | temp bytes | state bytes",
        "--- | --: | --: | --: | --: | --: | --:",
    ]
    for name, seconds in calls.items():
        contender, milliseconds = contenders[name], [1e3 * call for call in seconds]
        temp, by_call = contender.temp_bytes, quartiles(speeds(seconds, first))
        rows.append(
            f"{name} | {min(milliseconds):.2f} | {listed(quartiles(milliseconds))} | "
            f"{min(first) / min(seconds):.2f} | {listed(by_call)} | "
            f"{'' if temp is None else f'{temp:,}'} | {contender.state_bytes:,}"
        )
    return "\n".join([*(f"| {row} |" for row in rows), ""])


def bars(calls: dict[str, dict[str, list[float]]]) -> str:
    """Format one line per bar."""
    lines = []
    for kind, other, bar in BARS:
        if other in calls[kind]:
            ours, theirs = calls[kind][OURS], calls[kind][other]
            lines.append(
                f"{OURS} beside {other}, {kind} ids: "
                f"{min(theirs) / min(ours):.2f} times as fast by the minima, "
                f"{statistics.median(speeds(ours, theirs)):.2f} in the median call; "
                f"bar {bar:.2f}"
            )
    return "\n".join(lines)


def speeds(ours: list[float], theirs: list[float]) -> list[float]:
    """Return how many times as fast each call was as the other's."""
    return [their / our for our, their in zip(ours, theirs, strict=True)]


if __name__ == "__main__":
    main()
