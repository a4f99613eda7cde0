"""Train small models in several processes: the worker that one is, and the launcher.

`end_of` runs workers as ``python -m tests.processes``. All their sockets are on
127.0.0.1, and a worker that hangs ends itself.
"""

import contextlib
import faulthandler
import functools
import itertools
import json
import os
import pathlib
import resource
import signal
import socket
import subprocess
import sys
import tempfile
import time
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P
from jaxlib import _jax

from neuron_optax import adam_mini, neuron_adagrad, neuron_rmsprop
from neuron_optax.sharding import state_specs

HOST = "127.0.0.1"
HEARTBEAT = 10  # seconds of silence after which a process counts as dead
PATIENCE = 180  # seconds for a job, on a machine with other work
ROOT = pathlib.Path(__file__).parents[1]

STEPS, SAVED = 8, (3, 6)  # how many; after which there is a checkpoint
BATCH, WIDTHS = 16, (8, 16, 8)
RATE = 0.1  # the largest
SPECS = {
    f"Dense_{layer}": {"kernel": P("fsdp", "tp"), "bias": P("tp")} for layer in (0, 1)
}


class Run(NamedTuple):
    """One training, by all processes of a job together."""

    results: str  # the file for the numbers after each step
    mesh: tuple[int, int] = (2, 2)
    begin: int = 0  # steps that others have taken
    source: str = ""  # what they left: a checkpoint, or results
    forget: bool = False  # the states of the optimizers
    saves: str = ""  # the folder for checkpoints, each named by its step
    seed: int = 0  # of the data
    victim: tuple[int, int] | None = None  # the process that dies, and after which step


def optimizers():
    """Return what trains one model each, side by side in one program."""
    schedule = optax.cosine_decay_schedule(RATE, STEPS)
    return {
        "adam_mini": adam_mini(RATE),
        "neuron_adagrad": neuron_adagrad(RATE),
        "chain": optax.chain(optax.clip_by_global_norm(0.1), neuron_rmsprop(schedule)),
    }


def draw_params():
    """Draw the params of a network as Flax names them."""
    draw = np.random.default_rng(0).standard_normal
    return {
        layer: {"kernel": draw(shape, np.float32), "bias": draw(shape[1], np.float32)}
        for layer, shape in zip(SPECS, itertools.pairwise(WIDTHS), strict=True)
    }


def loss(params, batch):
    """Return the mean squared error of two layers."""
    first, second = params.values()
    hidden = jnp.tanh(batch["inputs"] @ first["kernel"] + first["bias"])
    output = hidden @ second["kernel"] + second["bias"]
    return jnp.mean((output - batch["targets"]) ** 2)


def place(value, sharding):
    """Return a global array of which each process holds its part."""
    return jax.make_array_from_callback(value.shape, sharding, value.__getitem__)


def draw_batch(mesh, seed, step):
    """Draw what step number ``step`` learns from, cut along the batch."""
    draw = np.random.default_rng((seed, step)).standard_normal
    names = {"inputs": WIDTHS[0], "targets": WIDTHS[-1]}
    cut = NamedSharding(mesh, P("fsdp"))
    return {n: place(draw((BATCH, w), np.float32), cut) for n, w in names.items()}


def shardings(mesh):
    """Return where the params and the state of each model lie."""
    of_params = jax.tree.map(lambda spec: NamedSharding(mesh, spec), SPECS)
    return {
        name: (of_params, state_specs(optimizer, draw_params(), SPECS, mesh))
        for name, optimizer in optimizers().items()
    }


@functools.cache
def compiled(mesh):
    """Return what draws all models, takes a step of each, and gathers them whole."""

    def draw(params):
        return {name: (params, o.init(params)) for name, o in optimizers().items()}

    def advance(optimizer, params, state, batch):
        updates, state = optimizer.update(jax.grad(loss)(params, batch), state, params)
        return optax.apply_updates(params, updates), state

    def step(models, batch):
        return {n: advance(o, *models[n], batch) for n, o in optimizers().items()}

    cut, whole = shardings(mesh), NamedSharding(mesh, P())
    return (
        functools.partial(jax.jit(draw, out_shardings=cut), draw_params()),
        jax.jit(step, out_shardings=cut, donate_argnums=0),
        jax.jit(lambda models: models, out_shardings=whole),
    )


def name_of(step, path):
    """Return the name of a number in the results."""
    return f"{step}/{jax.tree_util.keystr(path, simple=True, separator='/')}"


def from_results(path, step, blank):
    """Return the models after a step of a run, from its results."""
    with np.load(path) as numbers:
        return jax.tree.map_with_path(
            lambda path, leaf: place(numbers[name_of(step, path)], leaf.sharding), blank
        )


def save(path, models):
    """Let orbax save the models, for good on return."""
    with orbax.checkpoint.StandardCheckpointer() as checkpointer:
        checkpointer.save(path, models)
        checkpointer.wait_until_finished()


def begin(run, mesh):
    """Return the models with which a run begins."""
    draw, _, _ = compiled(mesh)
    if not run.source:
        return draw()
    places = shardings(mesh)
    blank = jax.tree.map(
        lambda leaf, at: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=at),
        jax.eval_shape(draw),
        places,
    )
    if run.source.endswith(".npz"):
        return from_results(run.source, run.begin, blank)
    with orbax.checkpoint.StandardCheckpointer() as checkpointer:
        models = checkpointer.restore(run.source, blank)
    assert jax.tree.map(lambda leaf: leaf.sharding, models) == places
    if run.forget:
        return {name: (models[name][0], state) for name, (_, state) in draw().items()}
    return models


def train(run):
    """Train all models; the first process writes what they were after each step."""
    mesh = jax.make_mesh(run.mesh, ("fsdp", "tp"), (AxisType.Auto,) * 2)
    _, advance, gather = compiled(mesh)
    models, numbers = begin(run, mesh), {}
    for step in range(run.begin, STEPS + 1):
        if step > run.begin:
            models = advance(models, draw_batch(mesh, run.seed, step))
        for path, leaf in jax.tree.leaves_with_path(gather(models)):
            numbers[name_of(step, path)] = np.asarray(leaf)
        if run.victim == [jax.process_index(), step]:
            os.kill(os.getpid(), signal.SIGKILL)
        if run.saves and step in SAVED:
            save(f"{run.saves}/{step}", models)
    if jax.process_index() == 0:
        np.savez(run.results, **numbers)


def join(process, count, port):
    """Become one process of a job that nobody outside this machine can reach."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # when JAX aborts us
    gloo = _jax.make_gloo_tcp_collectives  # JAX: wherever the host's name points
    _jax.make_gloo_tcp_collectives = functools.partial(gloo, hostname=HOST)
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    jax.distributed.initialize(
        coordinator_address=f"{HOST}:{port}",
        coordinator_bind_address=f"{HOST}:{port}",  # JAX: on all interfaces
        num_processes=count,
        process_id=process,
        initialization_timeout=PATIENCE // 2,
        heartbeat_timeout_seconds=HEARTBEAT,
    )


def abroad():
    """List the addresses of sockets of this process that are not on the loopback."""
    found = []
    for number in range(1024):  # descriptors; of copies, which close without harm
        with contextlib.suppress(OSError), socket.socket(fileno=os.dup(number)) as copy:
            if copy.family in (socket.AF_INET, socket.AF_INET6):
                found.append(copy.getsockname()[:2])
    return [a for a in found if not a[0].removeprefix("::ffff:").startswith("127.")]


def work(process, count, port, runs):
    """Do the share of one process in all runs of a job."""
    faulthandler.dump_traceback_later(PATIENCE, exit=True)
    if count > 1:
        join(process, count, port)
    for run in runs:
        train(Run(*run))
    if count > 1:
        assert not (found := abroad()), found


class End(NamedTuple):
    """How a job ended."""

    codes: list[int]  # of each process
    seconds: float  # between the first end of a process and the last
    output: str


def free_port():
    """Return a port that nobody uses now."""
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        return probe.getsockname()[1]


def worker(*share, devices, log):
    """Start a worker with this many simulated devices, whatever flags we run under."""
    flags = f"--xla_force_host_platform_device_count={devices}"
    kept = {k: v for k, v in os.environ.items() if "_proxy" not in k.lower()}
    command = [sys.executable, "-Werror::UserWarning", "-mtests.processes"]
    return subprocess.Popen(
        [*command, json.dumps(share)],
        cwd=ROOT,
        env=kept | {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags},
        stdout=log,
        stderr=subprocess.STDOUT,
    )


def seconds_apart(workers):
    """Wait for all workers; return what lay between the first end and the last."""
    ends, deadline = {}, time.monotonic() + PATIENCE
    while len(ends) < len(workers):
        if time.monotonic() > deadline:
            return float("inf")
        time.sleep(0.02)
        for one in workers:
            if one.poll() is not None:
                ends.setdefault(one.pid, time.monotonic())
    return max(ends.values()) - min(ends.values())


def end_of(count, *runs, devices=4):
    """Run a job of so many processes and devices; kill what is left in the end."""
    port = free_port()
    with tempfile.TemporaryFile("w+") as log:
        workers = [
            worker(process, count, port, runs, devices=devices // count, log=log)
            for process in range(count)
        ]
        try:
            seconds = seconds_apart(workers)
        finally:
            for one in workers:
                one.kill()
            codes = [one.wait() for one in workers]
        log.seek(0)
        return End(codes, seconds, log.read())


def launch(count, *runs, devices=4):
    """Run a job that must succeed."""
    end = end_of(count, *runs, devices=devices)
    assert not any(end.codes), f"{end.codes}: {end.output}"


if __name__ == "__main__":
    work(*json.loads(sys.argv[1]))
