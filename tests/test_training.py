"""The study of training goes on where it was killed, and reports what it recorded."""

import math
import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import benchmarks.training as training
from benchmarks.study import records, report, standings
from benchmarks.study.contenders import Contender, decayed
from benchmarks.study.plan import FULL, SMOKE
from benchmarks.study.records import Record
from benchmarks.study.runs import Trainer

ROOT = Path(__file__).parents[1]
KILLED = -12  # the last record that is kept of a study to be killed
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
    read = records.parse(records.line(written))
    assert read.validation[0] == 3.1416 and math.isnan(read.validation[1])
    assert read.rates == {"kernel": [1.2346]}


def test_the_best_rate_has_the_least_loss_and_never_one_that_is_not_finite():
    tried = [record(0.1, validation=[3.0]), record(0.2, validation=[2.0])]
    assert records.best(tried) == 0.2
    assert records.best([*tried, record(0.3, validation=[math.nan])]) == 0.2
    assert records.best([record(0.2), record(0.1)]) == 0.1  # of equals the lowest


def test_rates_come_first_then_those_beyond_and_then_seeds_of_the_best():
    def following(*done):
        return records.next_run(list(done), [0.1, 1.0], seeds=3)

    low, high = record(0.1, validation=[3.0]), record(1.0, validation=[2.0])
    assert following(low) == (1.0, 0)
    assert following(low, high) == (10.0, 0)
    beyond = record(10.0, validation=[2.5])
    assert following(low, high, beyond) == (1.0, 1)
    assert following(low, high, beyond, record(0.1, seed=1)) == (1.0, 1)
    seeds = record(1.0, seed=1), record(1.0, seed=2)
    assert following(low, high, beyond, *seeds) is None
    better, best = record(10.0, validation=[1.5]), record(100.0, validation=[1.0])
    assert following(low, high, better) == (100.0, 0)
    assert following(low, high, better, best) == (100.0, 1)  # two beyond at most
    assert following(record(0.1), high) == (0.01, 0)
    assert records.next_run([record(0.1)], [0.1], seeds=2) == (0.1, 1)


def test_steps_to_a_goal_lie_between_two_measurements():
    course = record(validation=[4.0, 2.0, 1.0], steps=12)  # measured at every step
    assert standings.steps_to(5.0, course) == 1
    assert standings.steps_to(3.0, course) == 1.5
    assert standings.steps_to(0.5, course) == math.inf


def standing(*losses):
    """Return the standing of three seeds at the middle of three rates."""
    seeds = [record(0.2, seed, [loss]) for seed, loss in enumerate(losses)]
    others = [record(rate, validation=[9.0]) for rate in (0.1, 0.4)]
    return standings.standing([*others, *seeds], [0.1, 0.2, 0.4], 3)


def test_contenders_are_compared_seed_by_seed():
    adam, other = standing(1.0, 2.0, 3.0), standing(0.5, 2.5, 2.0)
    assert other.rate == 0.2 and not other.at_edge and other.median() == 2.0
    assert standings.beside(other, adam) == (0.0, 2, 3)
    assert standings.beside(standing(0.5, 1.0, 2.0), adam) == (-0.5, 3, 3)
    assert standings.beside(standing(3.0, math.nan, math.nan), adam).better == 0


def test_steps_to_adams_loss_are_those_of_the_same_seed():
    adam = standing(4.0, 3.0, 2.0)
    fast = [record(0.2, seed, [5.0, loss]) for seed, loss in enumerate((4, 3, 2))]
    assert standings.steps_to_adams(adam._replace(seeds=fast), adam) == 2


def test_a_contender_without_all_its_trainings_stands_nowhere():
    tried = [record(rate, validation=[9.0]) for rate in (0.1, 0.4)]
    assert standings.standing([*tried, record(0.2)], [0.1, 0.2, 0.4], 3) is None


def test_learning_rates_rise_then_fall_to_nothing():
    contender = Contender(optax.sgd, 0.5)
    rates = [float(contender.schedule(0.5, 100)(step)) for step in range(101)]
    assert rates[0] == pytest.approx(0.1) and max(rates) == pytest.approx(0.5)
    assert np.argmax(rates) == 4 and rates[100] == pytest.approx(0.0)
    at_once = contender._replace(warm_up=0.0).schedule(0.5, 100)
    assert float(at_once(0)) == pytest.approx(0.5)


@pytest.mark.parametrize(("l2", "decoupled", "moved"), [(1, 0, 0.7), (0, 0.5, 0.5)])
def test_only_matrices_decay_into_the_gradient_or_beside_it(l2, decoupled, moved):
    params = {"kernel": jnp.ones((1, 1)), "bias": jnp.ones(1)}
    optimizer = decayed(optax.sgd(0.3), lambda step: 1.0, l2, decoupled)
    updates, _ = optimizer.update(
        jax.tree.map(jnp.zeros_like, params), optimizer.init(params), params
    )
    found = optax.apply_updates(params, updates)
    assert found["kernel"].item() == pytest.approx(moved) and found["bias"] == 1.0


def test_records_of_another_length_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"must be of 400 steps, got \{12\}"):
        training.check_steps(tmp_path, [record()], "language", 400)


@pytest.mark.parametrize("problem", FULL)
def test_everyone_has_the_same_budget(problem):
    rates = {name: of.rates for name, of in FULL[problem].contenders.items()}
    fixed = re.compile(", factor |, per entry of ")  # explain one thing each
    tuned = {name: of for name, of in rates.items() if not fixed.search(name)}
    assert {len(of) for of in tuned.values()} == {5}
    for of in tuned.values():
        np.testing.assert_allclose(np.diff(np.log10(of)), 0.5, atol=0.01)
    assert {len(of) for name, of in rates.items() if name not in tuned} <= {1}


def test_the_records_that_are_kept_are_all_there_are():
    kept = records.read(KEPT)
    known = {(problem, name) for problem, of in FULL.items() for name in of.contenders}
    begun = {(of.problem, of.optimizer) for of in kept}
    assert begun == known
    for problem, name in begun:
        done = [of for of in kept if (of.problem, of.optimizer) == (problem, name)]
        contender, seeds = FULL[problem].contenders[name], FULL[problem].seeds
        assert records.next_run(done, contender.rates, seeds) is None, (problem, name)
        assert len(done) == len({of.run for of in done})


def test_the_report_is_what_the_records_say(tmp_path):
    report.write_report(records.read(KEPT), FULL, tmp_path)
    kept = (ROOT / "benchmarks" / "TRAINING.md").read_text()
    assert (tmp_path / "TRAINING.md").read_text() == kept
    for picture in re.findall(r"\((\w+\.png)\)", kept):
        assert (tmp_path / picture).stat().st_size > 10_000
        assert (ROOT / "benchmarks" / picture).exists()


def test_the_figures_of_the_readme_are_those_of_the_report():
    shown = table_in("README.md", "| contender | state, of Adam's |")
    said = table_in("benchmarks/TRAINING.md", "| contender | language |")
    assert len(shown) > 10
    for name, row in shown.items():
        row.pop("state, of Adam's")
        assert row == {problem: said[name][problem] for problem in row}, name


def table_in(path, head):
    """Return the cells of a table by first cell and column."""
    text = (ROOT / path).read_text()
    (table,) = re.findall(rf"^{re.escape(head)}.*?(?=\n\n)", text, re.M | re.S)
    head, _, *rows = [
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in table.splitlines()
    ]
    return {row[0]: dict(zip(head[1:], row[1:], strict=True)) for row in rows}


@pytest.mark.slow
def test_every_contender_takes_steps_on_paper():
    learned = FULL["language"].problem()
    drawn = learned.draw(0)
    shapes = lambda tree: jax.eval_shape(lambda: jax.tree.map(jnp.asarray, tree))
    params, rest = shapes(drawn.params), shapes(drawn.rest)
    batches = shapes(drawn.batches(0, 2))
    for name, contender in FULL["language"].contenders.items():
        if contender.advised:  # by a training
            continue
        trainer = Trainer(learned, contender)
        state = jax.eval_shape(trainer.optimizer(0.1)[0].init, params)
        carry = params, rest, state
        moved, *_ = jax.eval_shape(trainer.part, carry, batches, 0.1)
        assert jax.tree.map(jnp.shape, moved) == jax.tree.map(jnp.shape, params), name


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
    lines = whole.splitlines(keepends=True)
    path.write_text("".join(lines[:KILLED]) + lines[KILLED][:20])
    training.main(command)
    again = {of[:5]: timeless(of) for of in records.read(path)}
    first = {of[:5]: timeless(of) for of in map(records.parse, whole.splitlines())}
    assert again == first and path.read_text().startswith("".join(lines[:KILLED]))


def timeless(of):
    """Return what a training leaves but for how long it took."""
    return records.line(of._replace(milliseconds=0.0))
