"""Benchmarks run, and what they say follows from the calls they timed."""

import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import benchmarks.__main__ as everything
import benchmarks.formulations
from benchmarks import (
    contenders,
    startup,
    step_time,
    timing,
    torch_contenders,
    workloads,
)
from neuron_optax import strategies


def test_every_strategy_and_what_the_issue_names_takes_part():
    named = {name for name in strategies.__all__ if name.islower()}
    part = {name for name in named if not name.startswith(("scale_", "row_"))}
    assert part <= set(step_time.CONTENDERS["transformer"])
    known = contenders.OPTIMIZERS | torch_contenders.TORCH | torch_contenders.AUTHORS
    for workload, names in step_time.CONTENDERS.items():
        assert workload in workloads.WORKLOADS and set(names) <= known.keys()
        assert {step_time.baseline(name) for name in names} <= set(names)
    for bar in step_time.BARS:
        assert {bar.ours, bar.other or bar.ours} <= set(
            step_time.CONTENDERS[bar.workload]
        )


def test_a_race_calls_all_in_every_round_and_drops_the_first(monkeypatch):
    clock = iter(np.arange(1e6))
    monkeypatch.setattr(timing.time, "perf_counter", lambda: float(next(clock)))
    order = []
    steps = {name: lambda name=name: order.append(name) for name in "abc"}
    calls = timing.race(steps, seconds=0.0, least=4)
    rounds = [order[n : n + 3] for n in range(0, len(order), 3)]
    assert all(sorted(of) == ["a", "b", "c"] for of in rounds) and len(rounds) == 5
    assert len({tuple(of) for of in rounds}) > 1
    assert calls == {name: [1.0] * 4 for name in "abc"}


def test_a_race_ends_without_a_progress_bar(monkeypatch):
    monkeypatch.setattr(timing, "tqdm", functools.partial(timing.tqdm, disable=True))
    assert len(timing.race({"a": lambda: None}, seconds=0.0, least=2)["a"]) == 2


def test_a_comparison_is_of_the_same_round():
    took = timing.compare([2.0, 8.0, 6.0], [1.0, 2.0, 6.0])
    assert took.best == 2.0 and took.ratio == 2.0
    assert took.quartiles == (4.0, 6.0, 7.0) and took.by_round == (1.5, 2.0, 3.0)


def test_the_power_of_a_power_law_is_found():
    sizes = [1, 10, 1000]
    assert timing.power(sizes, [3 * size**0.7 for size in sizes]) == pytest.approx(0.7)


def test_the_bound_counts_bytes_that_must_move():
    calls = {"stream": [1.0, 1.0], "optax.adam": [7.0, 14.0]}
    moments = timing.Runner(lambda: None, state_bytes=80)
    row = step_time._row("optax.adam", moments, calls, params_bytes=40)
    assert row.bound == pytest.approx(7 / 3)  # 3 passes of params, 2 of each moment
    assert row.ratio_of_bound == pytest.approx(3.0)


def test_a_bar_that_is_missed_is_called_missed():
    calls = {
        "stream": [1.0] * 4,
        "optax.adagrad": [2.0] * 4,
        "neuron_adagrad": [1.25] * 4,
    }
    runner = timing.Runner(lambda: None, state_bytes=0)
    rows = {name: step_time._row(name, runner, calls, 40) for name in calls}
    said = step_time.reached({"dense": rows})
    assert (
        "optax.adagrad: 0.62 by the minima, 0.62 by the medians; bar 0.62: missed"
        in said
    )
    assert (
        "its bound: 1.25 by the minima, 1.25 by the medians; bar 1.40: reached" in said
    )


def test_the_stream_of_narrow_params_moves_as_many_bytes():
    shapes = workloads.dense(2, 8, jnp.bfloat16)
    stream = workloads.as_float32(shapes)
    assert workloads.count(stream)[2] == workloads.count(shapes)[2]
    assert {leaf.dtype for leaf in jax.tree.leaves(stream)} == {np.dtype(np.float32)}


@pytest.mark.parametrize("name", [*workloads.WORKLOADS])
def test_workloads_are_drawn_as_they_are_described(name):
    if name in ("dense", "bfloat16", "matrices"):  # large, and all alike
        shapes = workloads.dense(2, 8)
    else:
        shapes = {"first": next(iter(workloads.WORKLOADS[name]().values()))}
    drawn = workloads.draw(shapes, 0)
    assert workloads.count(drawn) == workloads.count(shapes)


@pytest.mark.slow
def test_all_of_it_runs(tmp_path, capsys, monkeypatch):
    imports = dict.fromkeys(startup.IMPORTS, "import optax")  # first steps take longer
    monkeypatch.setattr(startup, "FIRST_STEPS", {})
    monkeypatch.setattr(startup, "BASELINES", imports)
    everything.main(["--quick", "--folder", str(tmp_path)])
    found = json.loads((tmp_path / "speed.json").read_text())
    assert {"step_time", "growth", "startup"} == found.keys()
    assert found["step_time"]["convolutional"]["adam_mini"]["baseline"] == "optax.adam"
    assert (tmp_path / "growth.png").stat().st_size > 1000
    printed = capsys.readouterr().out
    assert "| adam_mini |" in printed and "import neuron_optax / import" in printed


@pytest.mark.slow
def test_formulations_run_and_mean_the_same(capsys):
    of = benchmarks.formulations.groups(64)
    for question in ("statistic and step in float32", "Newton-Schulz, large"):
        shapes, steps = of[question]
        params, grads = (workloads.draw(shapes, seed) for seed in (1, 0))
        ends = {name: step(params, (), grads)[0] for name, (_, step) in steps.items()}
        said = next(name for name in ends if name.endswith("*"))
        for name, end in ends.items():
            same = np.allclose(
                end["layer_000"]["kernel"],
                ends[said]["layer_000"]["kernel"],
                rtol=1e-3,  # five iterations amplify float32 by 3.4445 each
                atol=1e-5,
            )
            other = (
                "no statistic",
                "contiguous",
                "sum of squares of c",
                "contracted, factors",
            )
            assert same != name.startswith(other)
    shapes, steps = of["Adam-mini in float32"]
    params, grads = (workloads.draw(shapes, seed) for seed in (1, 0))
    ends = [step(params, init(params), grads) for init, step in steps.values()]
    for end in ends[1:]:
        for moved, wanted in zip(*map(jax.tree.leaves, (end, ends[0])), strict=True):
            np.testing.assert_allclose(moved, wanted, rtol=1e-5, atol=1e-7)
    benchmarks.formulations.main(["--width", "64", "--seconds", "0.1"])
    assert "| sum(g * g)* |" in capsys.readouterr().out
