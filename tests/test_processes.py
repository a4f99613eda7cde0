"""Several processes train as one does, go on from its checkpoints, and end together."""

import signal
import socket
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from tests.processes import (
    HEARTBEAT,
    RATE,
    SAVED,
    STEPS,
    WIDTHS,
    Run,
    abroad,
    end_of,
    launch,
)

pytestmark = pytest.mark.slow

FIRST, LAST = SAVED
BOUND = 6 * HEARTBEAT  # seconds; silence is noticed after one, the way out is slower
# Each step is about the rate in size, and has two sums of at most 16 terms in another
# order: the gradient, and its mean square over fan-in.
CLOSE = (STEPS - FIRST) * RATE * 2 * max(WIDTHS) * np.finfo(np.float32).eps


def numbers(path):
    """Read the results of a run: the params and states after each step."""
    with np.load(path) as file:
        results = {int(step): {} for step in {name.split("/")[0] for name in file}}
        for name, value in file.items():
            step, _, name = name.partition("/")
            results[int(step)][name] = value
    return results


def differing(found, expected):
    """List by name what is not the same, bit for bit."""
    assert found and found.keys() == expected.keys()
    bits = lambda value: (value.dtype, value.shape, value.tobytes())
    return {name for name in found if bits(found[name]) != bits(expected[name])}


def assert_same(path, expected, since=0):
    """Assert that two runs were the same, bit for bit, after each step since one."""
    found, expected = numbers(path), numbers(expected)
    assert sorted(found) == list(range(since, STEPS + 1))
    for step, results in found.items():
        assert not differing(results, expected[step]), f"after step {step}"


def params(results):
    """Return the params of all models; the rest is their states."""
    return {name: v for name, v in results.items() if name.split("/")[1] == "0"}


def assert_elsewhere(path, expected):
    """Assert that the params of all models ended at others."""
    found, expected = (params(numbers(at)[STEPS]) for at in (path, expected))
    assert differing(found, expected) == found.keys()


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    """Two processes that train and save."""
    folder = tmp_path_factory.mktemp("pair")
    launch(2, Run(f"{folder}/whole.npz", saves=f"{folder}/saves"))
    return folder


def resumed(folder, pair, name="resumed", **changed):
    """Return a run from the first checkpoint of two processes."""
    source = f"{pair}/saves/{FIRST}"
    arguments = {"begin": FIRST, "source": source} | changed
    return Run(f"{folder}/{name}.npz", **arguments)


@pytest.fixture(scope="module")
def alone(pair, tmp_path_factory):
    """One process that trains, and goes on from a checkpoint of two."""
    folder = tmp_path_factory.mktemp("alone")
    launch(
        1,
        Run(f"{folder}/whole.npz"),
        Run(f"{folder}/other_data.npz", seed=1),
        resumed(folder, pair),
        resumed(folder, pair, "forgetful", forget=True),
    )
    return folder


@pytest.fixture(scope="module")
def four(pair, tmp_path_factory):
    """Four processes that train, and go on from a checkpoint of two."""
    folder = tmp_path_factory.mktemp("four")
    launch(4, Run(f"{folder}/whole.npz"), resumed(folder, pair))
    return folder


@pytest.fixture(scope="module")
def wide(pair, tmp_path_factory):
    """One process on twice the devices, from a checkpoint of two and from numbers."""
    folder = tmp_path_factory.mktemp("wide")
    results = f"{pair}/whole.npz"
    launch(
        1,
        resumed(folder, pair, mesh=(4, 2)),
        resumed(folder, pair, "placed", mesh=(4, 2), source=results),
        devices=8,
    )
    return folder


CRASHES = {  # the process that dies, after which step, and the last checkpoint
    "worker_before_it_saves": (1, LAST, FIRST),
    "coordinator": (0, STEPS - 1, LAST),
}


@pytest.fixture(scope="module")
def crashed(tmp_path_factory):
    """Two processes of which one dies, and where their checkpoints are, by crash."""
    folders = {name: tmp_path_factory.mktemp(name) for name in CRASHES}

    def crash(name):
        folder = folders[name]
        victim = CRASHES[name][:2]
        run = Run(f"{folder}/whole.npz", saves=f"{folder}/saves", victim=victim)
        return folder, end_of(2, run)

    with ThreadPoolExecutor() as pool:
        return dict(zip(CRASHES, pool.map(crash, CRASHES), strict=True))


def last_checkpoint(saves):
    """Return the last step that was saved; what was half written has another name."""
    return max(int(path.name) for path in saves.iterdir() if path.name.isdigit())


@pytest.fixture(scope="module")
def restarted(crashed):
    """Two processes that go on from the last checkpoint before each crash."""
    runs = {}
    for name, (folder, _) in crashed.items():
        step = last_checkpoint(folder / "saves")
        source = f"{folder}/saves/{step}"
        runs[name] = Run(f"{folder}/restarted.npz", begin=step, source=source)
    launch(2, *runs.values())
    return runs


def test_two_processes_train_as_one(pair, alone):
    assert_same(pair / "whole.npz", alone / "whole.npz")


def test_four_processes_train_as_one(four, alone):
    assert_same(four / "whole.npz", alone / "whole.npz")


def test_other_data_and_a_missing_step_are_noticed(alone):
    assert_elsewhere(alone / "other_data.npz", alone / "whole.npz")
    results = numbers(alone / "whole.npz")
    last, before = params(results[STEPS]), params(results[STEPS - 1])
    assert differing(last, before)


def test_one_process_goes_on_from_a_checkpoint_of_two(alone, pair):
    assert_same(alone / "resumed.npz", pair / "whole.npz", since=FIRST)


def test_four_processes_go_on_from_a_checkpoint_of_two(four, pair):
    assert_same(four / "resumed.npz", pair / "whole.npz", since=FIRST)


def test_a_forgotten_state_is_noticed(alone, pair):
    assert_elsewhere(alone / "forgetful.npz", pair / "whole.npz")


def test_another_mesh_goes_on_from_a_checkpoint_as_from_its_numbers(wide, pair):
    assert_same(wide / "resumed.npz", wide / "placed.npz", since=FIRST)
    restored, saved = (
        numbers(at / n) for at, n in ((wide, "resumed.npz"), (pair, "whole.npz"))
    )
    assert not differing(restored[FIRST], saved[FIRST])


def test_another_mesh_trains_the_same_to_rounding(wide, pair):
    found, expected = (numbers(at) for at in (wide / "resumed.npz", pair / "whole.npz"))
    for name, value in params(found[STEPS]).items():
        np.testing.assert_allclose(
            value, expected[STEPS][name], rtol=0, atol=CLOSE, err_msg=name
        )
        assert np.abs(value - expected[STEPS - 1][name]).max() > CLOSE


@pytest.mark.parametrize("name", CRASHES)
def test_a_job_ends_with_errors_soon_after_one_of_its_processes(name, crashed):
    folder, end = crashed[name]
    victim, *_ = CRASHES[name]
    assert end.codes[victim] == -signal.SIGKILL, end.output
    assert end.codes[1 - victim] not in (0, -signal.SIGKILL)
    assert end.seconds < BOUND
    assert not (folder / "whole.npz").exists()


@pytest.mark.parametrize("name", CRASHES)
def test_a_restart_ends_as_if_nothing_had_happened(name, restarted, pair):
    *_, step = CRASHES[name]
    assert restarted[name].begin == step
    assert_same(restarted[name].results, pair / "whole.npz", since=step)


def test_a_socket_that_others_can_reach_is_noticed():
    with socket.socket() as unbound:
        assert unbound.getsockname()[:2] in abroad()
