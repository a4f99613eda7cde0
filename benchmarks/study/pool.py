"""Trainings in processes of one thread each: as many at once as there are cores.

What a training computes does not depend on how many others run.
"""

import multiprocessing
import os
import threading
from collections.abc import Iterator
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from typing import Any, NamedTuple

import jax

from benchmarks.study.records import Record

ONE_THREAD = {"NPROC": "1", "OMP_NUM_THREADS": "1"}  # of XLA's and BLAS's pools


class Job(NamedTuple):
    """A contender on a problem of a plan, and which of its runs are done."""

    plan: str
    problem: str
    optimizer: str
    done: list[Record]


def begin() -> None:
    """Make a process train in one thread, and end with the one that began it."""
    os.environ.update(ONE_THREAD)  # which JAX reads with its first array
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent():
    parent = multiprocessing.parent_process()
    if parent:
        parent.join()
        os._exit(1)


def work(job: Job, records: Any) -> None:
    """Train what is not done yet and send each record."""
    from benchmarks.study.plan import PLANS
    from benchmarks.study.runs import trained

    part = PLANS[job.plan][job.problem]
    contender = part.contenders[job.optimizer]
    problem = part.problem()
    for record in trained(problem, job.optimizer, contender, part.seeds, job.done):
        records.put(record)
    jax.clear_caches()  # programs of other contenders pile up


def run(jobs: list[Job], workers: int) -> Iterator[Record]:
    """Yield records as they come; what a training raises ends it after those begun."""
    context = multiprocessing.get_context("spawn")
    failed = None
    with (
        context.Manager() as manager,
        ProcessPoolExecutor(workers, context, initializer=begin) as pool,
    ):
        records = manager.Queue()
        futures = {pool.submit(work, job, records) for job in jobs}
        while futures or not records.empty():
            done, futures = wait(futures, 0.2, FIRST_COMPLETED)
            while not records.empty():
                yield records.get()
            for future in done:
                if not future.cancelled() and future.exception():
                    failed = failed or future.exception()
            if failed:
                futures = {future for future in futures if not future.cancel()}
    if failed:
        raise failed
