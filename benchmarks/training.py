"""Does one learning rate per neuron help? A study that can be killed and goes on.

Every contender has the same budget on every problem: five learning rates around a
middle of its own and two more at most beyond the best, tried with the first seed; then
two more seeds at the rate whose validation loss is the least. What is reported is the
loss on a test part that chose nothing. Records are appended to ``training.jsonl``, and
what stands there is not run again. When all are there, ``TRAINING.md`` and its pictures
are made of them.
"""

import argparse
import os
import re
from collections.abc import Mapping
from pathlib import Path

from tqdm import tqdm

from benchmarks.study import records
from benchmarks.study.plan import PLANS, Part
from benchmarks.study.pool import Job, run
from benchmarks.study.records import Record
from benchmarks.study.report import write_report


def main(arguments: list[str] | None = None) -> None:
    """Run what is missing, then write the report."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.training", description=__doc__
    )
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 1
    parser.add_argument("--folder", type=Path, default=Path("benchmarks"))
    parser.add_argument("--workers", type=int, default=cores)
    parser.add_argument("--problems", nargs="+", help="names, or how they begin")
    parser.add_argument("--contenders", default="", help="a regular expression")
    parser.add_argument(
        "--smoke", action="store_true", help="small, to see that it runs"
    )
    parser.add_argument("--report", action="store_true", help="of what is there, alone")
    options = parser.parse_args(arguments)
    if options.smoke and options.folder == Path("benchmarks"):
        parser.error(
            "--smoke must have a --folder of its own: its records are not kept"
        )
    plan, path = "smoke" if options.smoke else "full", options.folder / "training.jsonl"
    if not options.report:
        parts = {
            problem: chosen(part, options.contenders)
            for problem, part in PLANS[plan].items()
            if problem.startswith(tuple(options.problems or [""]))
        }
        study(plan, parts, path, options.workers)
    write_report(records.read(path), PLANS[plan], options.folder)


def chosen(part: Part, names: str) -> Part:
    """Return a part with the contenders in whose name an expression is found."""
    found = {of: who for of, who in part.contenders.items() if re.search(names, of)}
    return part._replace(contenders=found)


def study(plan: str, parts: Mapping[str, Part], path: Path, workers: int) -> None:
    """Append the records that are missing of parts of a plan."""
    there, jobs, total, begun = records.read(path), [], 0, 0
    for problem, part in parts.items():
        check_steps(path, there, problem, part.problem().steps)
        for name, contender in part.contenders.items():
            done = [of for of in there if (of.problem, of.optimizer) == (problem, name)]
            if records.next_run(done, contender.rates, part.seeds):
                jobs.append(Job(plan, problem, name, done))
                total += max(len(contender.rates) + part.seeds - 1, len(done) + 1)
                begun += len(done)
    with tqdm(total=total, initial=begun, unit="run", smoothing=0.05) as bar:
        for record in run(jobs, workers):
            records.append(path, record)
            bar.set_postfix_str(f"{record.problem}: {record.optimizer}")
            bar.update()


def check_steps(path: Path, there: list[Record], problem: str, steps: int) -> None:
    """Refuse records of a shorter or longer training than the problem's now."""
    if other := {of.steps for of in there if of.problem == problem} - {steps}:
        raise ValueError(
            f"{path}: records of {problem} must be of {steps} steps, got {other}: "
            "take them out, or name another --folder"
        )


if __name__ == "__main__":
    main()
