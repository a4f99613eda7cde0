"""How long does a donated optimizer step take beside the optimizers everyone knows?

The contenders of a workload take turns, so that all of them meet the same disturbances.
Their bound is a stream of the bytes that they cannot do without: params and state read
and written, gradients read.
"""

import argparse
import dataclasses
from typing import Any, NamedTuple

from tqdm import tqdm

from benchmarks import contenders, torch_contenders
from benchmarks.contenders import OPTAX, OURS, STREAM
from benchmarks.timing import (
    Comparison,
    Runner,
    compare,
    header,
    itemized,
    listed,
    race,
    table,
)
from benchmarks.torch_contenders import AUTHORS, TORCH
from benchmarks.workloads import WORKLOADS, count, draw

MATRICES = ("normuon", "muown", "namo_d")
FAST = [name for name in OPTAX if name != "optax.muon"]
SIMPLE = ["neuron_adagrad", "neuron_rmsprop", "adam_mini"]
SOME = [STREAM, "optax.sgd", "optax.adagrad", "optax.rmsprop", "optax.adam", *SIMPLE]
CONTENDERS = {
    "dense": [
        *(STREAM, *FAST, *SIMPLE, "weight_norm_adam", "neuron_lamb", "nero"),
        *(*TORCH, "adam-mini", "pytorch_optimizer Nero"),
    ],
    "transformer": [STREAM, *OPTAX, *OURS, *TORCH, "pytorch_optimizer NorMuon"],
    "small": [*SOME, *TORCH],
    "convolutional": [*SOME, *TORCH],
    "bfloat16": [*SOME, *TORCH],
    "embeddings": [*SOME, "optax.sm3", "optax.adafactor", "rowwise_adagrad", *TORCH],
    "matrices": [STREAM, "optax.muon", "normuon"],
}
SECONDS = {
    **{"dense": 50.0, "transformer": 28.0, "small": 8.0, "convolutional": 12.0},
    **{"bfloat16": 22.0, "embeddings": 18.0, "matrices": 50.0},
}
LEAST = {"matrices": 2}  # rounds, each of half a minute


class Bar(NamedTuple):
    """The most that ``ours`` may take: a share of another, or of its bound."""

    workload: str
    ours: str
    other: str | None
    most: float


BARS = [
    Bar("dense", "neuron_adagrad", "optax.adagrad", 0.62),
    Bar("dense", "neuron_adagrad", None, 1.40),
    Bar("dense", "neuron_rmsprop", "optax.rmsprop", 0.62),
    Bar("dense", "neuron_rmsprop", None, 1.40),
    Bar("dense", "adam_mini", "optax.adam", 0.85),
    Bar("dense", "adam_mini", None, 1.45),
    Bar("dense", "adam_mini", "adam-mini", 1 / 3),
    Bar("dense", "neuron_lamb", "optax.lamb", 1.10),
    Bar("matrices", "normuon", "optax.muon", 1.10),
    Bar("bfloat16", "neuron_adagrad", None, 2.00),
    Bar("bfloat16", "neuron_rmsprop", None, 2.00),
    Bar("bfloat16", "adam_mini", None, 2.00),
]


@dataclasses.dataclass(frozen=True)
class Row:
    """What is known of one contender.

    Attributes:
      rounds: how many calls count.
      baseline: with what it is compared.
      took: its calls beside the baseline's.
      bound: the least it can take, in calls of the stream.
      over_bound: quartiles of its calls over that, by round.
      ratio_of_bound: its shortest call over that of the stream's shortest.
      state_bytes: of the state.
      temp_bytes: of memory beside arguments and results, if known.
      compile_s: seconds to compile, if it was.
    """

    rounds: int
    baseline: str
    took: Comparison
    bound: float
    over_bound: tuple[float, float, float]
    ratio_of_bound: float
    state_bytes: int
    temp_bytes: int | None
    compile_s: float | None


def main(arguments: list[str] | None = None) -> dict[str, Any]:
    """Print what ran, on what, one table per workload and one line per bar."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.step_time", description=__doc__
    )
    parser.add_argument("--workloads", nargs="+", default=[*WORKLOADS])
    parser.add_argument("--seconds", type=float, help="for each workload")
    parser.add_argument("--only", nargs="+", help="contenders, beside their baselines")
    options = parser.parse_args(arguments)
    if unknown := set(options.workloads) - WORKLOADS.keys():
        parser.error(f"workloads are {', '.join(WORKLOADS)}, got {sorted(unknown)}")
    known = {name for of in options.workloads for name in CONTENDERS[of]}
    if options.only and (unknown := set(options.only) - known):
        parser.error(f"contenders are {sorted(known)}, got {sorted(unknown)}")
    lines = header(
        "benchmarks.step_time",
        arguments,
        step="params and state donated; contenders take turns, in an order drawn anew",
    )
    print(itemized(lines))
    rows = {}
    for name in options.workloads:
        seconds = SECONDS[name] if options.seconds is None else options.seconds
        rows[name] = measure(name, seconds, options.only)
        rounds = rows[name][STREAM].rounds
        print(f"## {name}: {described(name)}, {rounds} rounds\n")
        print(formatted(rows[name]))
    print(reached(rows))
    plain = {
        name: {
            which: dataclasses.asdict(row) | {"took": row.took._asdict()}
            for which, row in of.items()
        }
        for name, of in rows.items()
    }
    return {"header": lines, **plain}


def measure(workload: str, seconds: float, only: list[str] | None) -> dict[str, Row]:
    """Return a row for every contender of a workload that can take part."""
    names = [name for name in CONTENDERS[workload] if _wanted(name, only)]
    for name in [*names]:
        if name in TORCH | AUTHORS and (why := torch_contenders.missing(name)):
            print(f"{name} is left out: {why}\n")
            names.remove(name)
    shapes = WORKLOADS[workload]()
    runners = build(names, shapes)
    steps = {name: runner.step for name, runner in runners.items()}
    calls = race(steps, seconds, LEAST.get(workload, 5), workload)
    size = count(shapes)[2]
    return {name: _row(name, runners[name], calls, size) for name in names}


def _wanted(name: str, only: list[str] | None) -> bool:
    chosen = only or [name]
    return name == STREAM or name in chosen or name in map(baseline, chosen)


def baseline(name: str) -> str:
    """Name what a contender is compared with."""
    if name in (STREAM, "optax.sgd", *OPTAX):
        return name
    others = contenders.BASELINES | torch_contenders.BASELINES
    return others.get(name, "optax.adam")


def build(names: list[str], shapes: Any) -> dict[str, Runner]:
    """Compile or make the step of every contender, each with params of its own."""
    grads = draw(shapes, 0)
    runners = {}
    for name in tqdm(names, desc="compile", unit="step"):
        if name in TORCH | AUTHORS:
            runners[name] = torch_contenders.eager(name, shapes)
        else:
            runners[name] = contenders.compiled(name, shapes, grads)
    return runners


def _row(
    name: str, runner: Runner, calls: dict[str, list[float]], params_bytes: int
) -> Row:
    least = (3 * params_bytes + 2 * runner.state_bytes) / (3 * params_bytes)
    streams = [least * call for call in calls[STREAM]]
    bounded = compare(calls[name], streams)
    return Row(
        len(calls[name]),
        baseline(name),
        compare(calls[name], calls[baseline(name)]),
        least,
        bounded.by_round,
        bounded.ratio,
        runner.state_bytes,
        runner.temp_bytes,
        runner.compile_s,
    )


def described(workload: str) -> str:
    """Say how large a workload is."""
    leaves, params, size = count(WORKLOADS[workload]())
    return f"{params:,} parameters in {leaves} leaves, {size:,} bytes"


def formatted(rows: dict[str, Row]) -> str:
    """Format one line per contender."""
    head = [
        *("contender", "min ms", "quartiles ms", "beside", "ratio of min"),
        *("quartiles of ratio by round", "over its bound, min", "by round"),
        *("state bytes", "temp bytes", "compile s"),
    ]
    lines = []
    for name, row in rows.items():
        milliseconds = tuple(1e3 * value for value in row.took.quartiles)
        lines.append(
            [
                *(name, f"{1e3 * row.took.best:.2f}", listed(milliseconds)),
                *(row.baseline, f"{row.took.ratio:.2f}", listed(row.took.by_round)),
                *(f"{row.ratio_of_bound:.2f}", listed(row.over_bound)),
                *(f"{row.state_bytes:,}", _known(row.temp_bytes, ",")),
                _known(row.compile_s, ".2f"),
            ]
        )
    return table(head, lines)


def _known(value, form):
    return "" if value is None else format(value, form)


def reached(rows: dict[str, dict[str, Row]]) -> str:
    """Format one line per bar whose contenders took part."""
    lines = []
    for workload, ours, other, most in BARS:
        of = rows.get(workload, {})
        if ours not in of or (other and other not in of):
            continue
        if other:
            best = of[ours].took.best / of[other].took.best
            middle = of[ours].took.quartiles[1] / of[other].took.quartiles[1]
        else:
            best, middle = of[ours].ratio_of_bound, of[ours].over_bound[1]
        sign = "reached" if best <= most else "missed"
        lines.append(
            f"- {workload}: {ours} / {other or 'its bound'}: {best:.2f} by the minima, "
            f"{middle:.2f} by the medians; bar {most:.2f}: {sign}"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    main()
