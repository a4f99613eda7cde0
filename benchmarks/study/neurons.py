"""The rates of neurons at the end of a training."""

from collections.abc import Mapping

from benchmarks.study.cells import is_variant, losses, redistributed, spread
from benchmarks.study.plan import DECAYED, READERS
from benchmarks.study.standings import Standings
from benchmarks.timing import table


def decays(main: Mapping[str, Standings]) -> str:
    """Return what decay and BatchNorm do to the factors of the neurons."""
    rows = []
    for problem in READERS:
        for name, of in main.get(problem, {}).items():
            if name in DECAYED and of.seeds[1].rates:
                rates = of.seeds[1].rates[min(of.seeds[1].rates)]
                middle = f"{rates[2] / of.rate:.3g}"
                rows.append([problem, name, losses(of), middle, spread(rates)])
    head = ["problem", "contender", "loss", "median factor", "decades"]
    return (
        "## What decay and BatchNorm do to the factors\n\nOf the first layer, at the "
        "end, at the best rate, of seed 1: the median over its neurons of the factor "
        "that multiplies the learning rate, and the decades from least to largest. "
        "That of `weight_norm_adam` is 1 plus the norm of the weights, which changes "
        "nothing else where a BatchNorm follows.\n\n"
        + table(head, sorted(rows, key=lambda row: row[1]))
    )


def neuron_rates(main: Mapping[str, Standings]) -> str:
    """Return the rates that the neurons of every kernel had at the end."""
    lines = [
        "## Rates of the neurons\n\nAt the end, at the best rate, of seed 1: the "
        "highest learning rate times the factor of the neurons of a leaf, least, "
        "median and largest; of a problem with more than four leaves only some are "
        "listed. "
        "Which direction they multiply differs.\n"
    ]
    for problem, placed in main.items():
        if "," in problem:  # of a decay, see above
            continue
        rows = [
            [name, path, *(f"{rates[at]:.2g}" for at in (0, 2, 4)), spread(rates)]
            for name, of in placed.items()
            if not (is_variant(name) or redistributed(name))
            for path, rates in shown_rates(of.seeds[1].rates)
        ]
        if rows:
            head = ["contender", "kernel", "least", "median", "largest", "decades"]
            lines += [f"### {problem}\n", table(head, rows)]
    return "\n".join(lines)


def shown_rates(rates: Mapping[str, list[float]]) -> list[tuple[str, list[float]]]:
    """Return the rates by leaf; of many those of the first, a middle and the last."""
    paths = sorted(rates)
    if len(paths) > 4:
        paths = [paths[0], paths[len(paths) // 2], paths[-1]]
    return [(path, rates[path]) for path in paths]
