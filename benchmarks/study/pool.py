"""Trainings in processes of one thread each: as many at once as there are cores.

What a training computes does not depend on how many others run.
"""

import multiprocessing
import os
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
    """Yield records as they come; what a training raises is raised here, at once."""
    context = multiprocessing.get_context("spawn")
    with context.Manager() as manager:
        records = manager.Queue()
        alone = {"initializer": os.environ.update, "initargs": (ONE_THREAD,)}
        pool = ProcessPoolExecutor(workers, mp_context=context, **alone)
        try:
            futures = {pool.submit(work, job, records) for job in jobs}
            while futures or not records.empty():
                done, futures = wait(futures, 0.2, FIRST_COMPLETED)
                while not records.empty():
                    yield records.get()
                for future in done:
                    future.result()
        finally:
            pool.shutdown(cancel_futures=True)
