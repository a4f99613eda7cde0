"""The study of training goes on where it was killed, and reports what it recorded."""

import json
import math
import re
from pathlib import Path

import jax
import numpy as np
import pytest

import benchmarks.training as training
from benchmarks.study import records, report, standings
from benchmarks.study.plan import FULL, SMOKE
from benchmarks.study.records import Record
from benchmarks.study.runs import Trainer

ROOT = Path(__file__).parents[1]
KEPT = ROOT / "benchmarks" / "training.jsonl"


def record(rate=0.1, seed=0, validation=(2.0, 1.0), **changed):
    """Return a record of a training whose test loss is its last validation loss."""
    fields = {
        "problem": "language",
        "optimizer": "adam",
        "steps": 12,
        "rate": rate,
        "seed": seed,
        "validation": list(validation),
        "test": {"loss": validation[-1]},
        "state_bytes": 8,
        "milliseconds": 2.0,
        "rates": {},
    }
    return Record(**fields | changed)


def test_a_line_that_a_killed_study_left_unfinished_is_replaced(tmp_path):
    path = tmp_path / "training.jsonl"
    records.append(path, record(0.1))
    path.write_text(path.read_text() + '{"problem":"lang')
    assert records.read(path) == [record(0.1)]
    records.append(path, record(0.2))
    assert records.read(path) == [record(0.1), record(0.2)]


def test_a_record_is_read_as_it_was_written_to_five_digits():
    written = record(validation=[math.pi, math.nan], rates={"kernel": [1.23456789]})
    read = Record(**json.loads(records.line(written)))
    assert read.validation[0] == 3.1416 and math.isnan(read.validation[1])
    assert read.rates == {"kernel": [1.2346]}


def test_the_best_rate_has_the_least_loss_and_never_one_that_is_not_finite():
    tried = [record(0.1, validation=[3.0]), record(0.2, validation=[2.0])]
    assert records.best(tried) == 0.2
    assert records.best([*tried, record(0.3, validation=[math.nan])]) == 0.2
    assert records.best([record(0.2), record(0.1)]) == 0.1  # of equals the lowest


def test_what_is_missing_are_rates_and_then_seeds_of_the_best():
    done = [record(0.1, validation=[3.0])]
    assert records.missing(done, [0.1, 0.2], seeds=3) == 3
    done.append(record(0.2))
    assert records.missing(done, [0.1, 0.2], seeds=3) == 2
    done.append(record(0.1, seed=1))  # of another rate than the best
    assert records.missing(done, [0.1, 0.2], seeds=3) == 2
    done += [record(0.2, seed=1), record(0.2, seed=2)]
    assert records.missing(done, [0.1, 0.2], seeds=3) == 0


def test_steps_to_a_goal_lie_between_two_measurements():
    course = record(validation=[4.0, 2.0, 1.0], steps=12)  # measured at every step
    assert standings.steps_to(5.0, course) == 1
    assert standings.steps_to(3.0, course) == 1.5
    assert standings.steps_to(0.5, course) == math.inf


def standing(*losses):
    """Return the standing of three seeds."""
    seeds = [record(0.2, seed, [loss]) for seed, loss in enumerate(losses)]
    tried = [record(0.1, validation=[9.0]), seeds[0]]
    return standings.standing([*tried, *seeds[1:]], [0.1, 0.2])


def test_contenders_are_compared_seed_by_seed():
    adam, other = standing(1.0, 2.0, 3.0), standing(0.5, 2.5, 2.0)
    assert other.rate == 0.2 and other.at_edge and other.median() == 2.0
    found = standings.beside(other, adam)
    assert (found.share, found.better, found.seeds) == (0.0, 2, 3)
    assert found.verdict == "undecided"
    assert standings.beside(standing(0.5, 1.0, 2.0), adam).verdict == "better"
    assert standings.beside(standing(math.nan, 3.0, math.nan), adam).verdict == "worse"


@pytest.mark.parametrize("problem", FULL)
def test_everyone_has_the_same_budget(problem):
    rates = {name: of.rates for name, of in FULL[problem].contenders.items()}
    fixed = re.compile(", factor |, per entry of ")  # explain one thing each
    tuned = {name: of for name, of in rates.items() if not fixed.search(name)}
    assert {len(of) for of in tuned.values()} == {5}
    for of in tuned.values():
        np.testing.assert_allclose(np.diff(np.log10(of)), 0.5, atol=0.01)
    assert {len(of) for name, of in rates.items() if name not in tuned} <= {1}


def test_nothing_is_missing_from_the_records_that_are_kept():
    kept = records.read(KEPT)
    for problem, part in FULL.items():
        for name, contender in part.contenders.items():
            done = [of for of in kept if (of.problem, of.optimizer) == (problem, name)]
            assert not records.missing(done, contender.rates, part.seeds), problem
            runs = len(contender.rates) + part.seeds - 1
            assert len(done) == runs, (problem, name)  # none beside those that count


def test_the_report_is_what_the_records_say(tmp_path):
    report.write_report(records.read(KEPT), FULL, tmp_path)
    kept = (ROOT / "benchmarks" / "TRAINING.md").read_text()
    assert (tmp_path / "TRAINING.md").read_text() == kept
    for picture in re.findall(r"\((\w+\.png)\)", kept):
        assert (tmp_path / picture).stat().st_size > 10_000
        assert (ROOT / "benchmarks" / picture).exists()


@pytest.mark.slow
@pytest.mark.parametrize("problem", ["language", "clicks"])
def test_every_contender_takes_steps_on_paper(problem):
    learned = FULL[problem].problem()
    drawn = learned.draw(0)
    shapes = lambda tree: jax.eval_shape(lambda: jax.tree.map(jax.numpy.asarray, tree))
    params, rest = shapes(drawn.params), shapes(drawn.rest)
    batches = shapes(drawn.batches(0, 2))
    for name, contender in FULL[problem].contenders.items():
        if contender.advised:  # by a training
            continue
        trainer = Trainer(learned, contender)
        state = jax.eval_shape(trainer.optimizer(0.1)[0].init, params)
        carry = params, rest, state
        moved = jax.eval_shape(trainer.part, carry, batches, 0.1)
        assert jax.tree.structure(moved) == jax.tree.structure(carry), name


@pytest.mark.slow
def test_a_small_study_of_everything_reports_goes_on_and_repeats_itself(tmp_path):
    command = ["--smoke", "--folder", str(tmp_path)]
    training.main(command)
    said = (tmp_path / "TRAINING.md").read_text()
    for problem, part in SMOKE.items():
        section = re.search(rf"^## {re.escape(problem)}\n(.*?)^## ", said, re.M | re.S)
        assert section, problem
        for name in part.contenders:
            if not report.is_variant(name):
                assert f"\n| {name} |" in section[1], (problem, name)
    assert "scaling factor" in said and "| adam_mini, uncorrected |" not in said
    pictures = {path.name for path in tmp_path.glob("*.png")}
    assert pictures == set(re.findall(r"\((\w+\.png)\)", said))

    path = tmp_path / "training.jsonl"
    whole = path.read_text()
    of_narrow = [line for line in whole.splitlines(True) if '"narrow"' in line]
    others = [line for line in whole.splitlines(True) if '"narrow"' not in line]
    path.write_text("".join([*others, *of_narrow[::2]]) + '{"half": ')
    training.main(command)
    again = {of[:5]: timeless(of) for of in records.read(path)}
    first = {of[:5]: timeless(of) for of in map(parsed, whole.splitlines())}
    assert again == first and path.read_text().startswith("".join(others))


def parsed(line):
    return Record(**json.loads(line))


def timeless(of):
    """Return what a training leaves but for how long it took."""
    return records.line(of._replace(milliseconds=0.0))
