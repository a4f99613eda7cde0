"""Do rates per row help the rarest items, over three seeds of a click model?

Model, traffic and contenders are those of ``examples/train_recommender.py``, once with
two tuned numbers for each contender and once with the learning rate alone. World,
clicks and start are drawn anew for each seed; the numbers were tuned on another one.
"""

import argparse
import importlib
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import optax
from tqdm import tqdm

import neuron_optax
from benchmarks.timing import header, itemized

PLAIN = "SGD, sparse"
RATE_ALONE = {  # defaults elsewhere, and whether they move touched rows alone
    PLAIN: (optax.sgd(1e3), True),
    "Adam, dense": (optax.adam(0.03), False),
    "row AdaGrad, sparse": (neuron_optax.row_adagrad(0.1), True),
    "by frequency, sparse": (neuron_optax.row_frequency_sgd(1e3), True),
}


def main() -> None:
    """Train every contender on every seed and print two tables."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.rare_ids", description=__doc__
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    options = parser.parse_args()
    sys.path.insert(0, str(Path(__file__).parents[1] / "examples"))
    example = importlib.import_module("train_recommender")
    print(itemized(header("benchmarks.rare_ids")))
    tuned = {name: example.CONTENDERS[name] for name in RATE_ALONE}
    alone = {
        name: example.Contender(tables, sparse, lambda state: 0.0)
        for name, (tables, sparse) in RATE_ALONE.items()
    }
    total = len(options.seeds) * len(RATE_ALONE) * 2 * example.STEPS
    with tqdm(total=total, unit="step") as bar:
        runs = [losses(example, [tuned, alone], seed, bar) for seed in options.seeds]
    both, one = zip(*runs, strict=True)
    print(table("two numbers tuned", both))
    print(table("rate alone tuned", one))


def losses(example: Any, settings: list[Any], seed: int, bar: Any) -> list[Any]:
    """Return by setting and contender the log-loss of all and of the rarest decile."""
    trained_on = example.STEPS * example.BATCH
    count = trained_on + example.HELD_OUT
    traffic = example.zipf_traffic.draw_traffic(seed=seed, count=count)
    trained = example.part(traffic, 0, trained_on)
    held_out = example.part(traffic, trained_on, None)
    (rarest, *_), _ = example.zipf_traffic.deciles(trained, held_out)

    def means(contender):
        at = example.train(contender, trained, held_out, bar, seed).losses
        return at.mean(), at[rarest].mean()

    return [{name: means(of) for name, of in setting.items()} for setting in settings]


def table(title: str, runs: tuple[Mapping[str, tuple[float, float]], ...]) -> str:
    """Format mean and range of every contender, and its gain on SGD by seed."""
    rows = [
        f"tables, {title} | log-loss | rarest decile | the same less SGD's, by seed",
        "--- | --: | --: | --:",
    ]
    for name in runs[0]:
        whole, rare = np.array([run[name] for run in runs]).T
        plain = np.array([run[PLAIN][1] for run in runs])
        gain = ", ".join(f"{of:+.4f}" for of in rare - plain)
        rows.append(f"{name} | {spread(whole)} | {spread(rare)} | {gain}")
    return "\n".join([*(f"| {row} |" for row in rows), ""])


def spread(values: np.ndarray) -> str:
    """Format a mean and a range."""
    return f"{values.mean():.4f} ({values.min():.4f} to {values.max():.4f})"


if __name__ == "__main__":
    main()
