"""What strategies are sensitive to, and what Adam-mini does without."""

import math
from pathlib import Path

from benchmarks.study import pictures
from benchmarks.study.cells import against_adam, losses, tried_rate
from benchmarks.study.plan import (
    BOUNDS,
    EXPLAINED,
    FACTORS,
    PER_ENTRY_OF,
    STARTS,
    WARM_UPS,
    WARMED,
)
from benchmarks.study.standings import ADAM, Standings
from benchmarks.timing import table


def explained(placed: Standings) -> str:
    """Return which second moments Adam-mini does without at which cost."""
    names = {
        "none: adam_mini": "adam_mini",
        **dict(zip(PER_ENTRY_OF, EXPLAINED, strict=True)),
        "all: adam": ADAM,
    }
    rows = [
        [said, tried_rate(of), losses(of), against_adam(placed, name)]
        for said, name in names.items()
        if (of := placed.get(name))
    ]
    head = ["per entry in", "rate", "loss", "beside Adam"]
    return (
        "## Where Adam-mini's loss comes from\n\nThe language model with one second "
        "moment per entry in a part of its leaves and one per neuron in the others, at "
        f"the rate that suits `adam_mini` best:\n\n{table(head, rows)}"
    )


def sensitivity(placed: Standings, folder: Path) -> str:
    """Return what starts, corrections, warm-up and factors do on the narrow network."""
    lines = [
        "## What it is sensitive to\n\nOn *narrow*, each tuned as the others are:\n"
    ]
    groups = {
        "neuron_adagrad by the start of its memory": {
            "0": "neuron_adagrad",
            **{f"{at:g}": f"neuron_adagrad, start {at:g}" for at in STARTS},
        },
        "adam_mini by the correction of its biases": {
            "corrected": "adam_mini",
            "not corrected": "adam_mini, uncorrected",
        },
        **{
            f"{name} by warm-up, as a share of the steps": {
                "0.05": name,
                **{f"{share:g}": f"{name}, warm-up {share:g}" for share in WARM_UPS},
            }
            for name in WARMED
        },
    }
    for title, names in groups.items():
        there = {said: name for said, name in names.items() if name in placed}
        rows = [
            [said, tried_rate(placed[name]), losses(placed[name])]
            for said, name in there.items()
        ]
        lines.append(table([title, "rate", "loss"], rows))
    lines.append(factors(placed))
    pictures.factors(placed, folder / "training_factors.png")
    lines.append(
        "![Loss against the scaling factor of weight_norm_adam, with and "
        "without bounds](training_factors.png)\n"
    )
    return "\n".join(lines)


def factors(placed: Standings) -> str:
    """Return what the factor of `weight_norm_adam` does, bounded and not."""
    rows = []
    for factor in FACTORS:
        cells = [
            losses(placed[name])
            if (name := f"weight_norm_adam, factor {factor:g}{bound}") in placed
            else ""
            for bound in BOUNDS
        ]
        rows.append([f"{factor:g}", *cells])
    head = [f"weight_norm_adam{bound or ', no bound'}" for bound in BOUNDS]
    said = (
        "The scaling factor of `weight_norm_adam` at a learning rate of 0.003, three "
        "seeds each; `high=10` bounds the factor of a neuron, `rms` measures weights "
        "by their root mean square. "
    )
    for bound in BOUNDS:
        least = learns_nothing(placed, bound)
        what = bound.removeprefix(", ") or "no bound"
        reached = f"from a factor of {least:g} on" if least else "at none of these"
        said += f"With {what} the median seed learns no more than chance {reached}. "
    return said.rstrip() + "\n\n" + table(["scaling factor", *head], rows)


def learns_nothing(placed: Standings, bound: str) -> float | None:
    """Return the least factor whose median loss, and any above, is no less than chance.

    That of ten digits is the logarithm of 10, within 1 %.
    """
    least = None
    for factor in reversed(FACTORS):
        of = placed.get(f"weight_norm_adam, factor {factor:g}{bound}")
        if of and of.median() < 0.99 * math.log(10):
            break
        least = factor
    return least
