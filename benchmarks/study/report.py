"""Tables of all records, and the pictures beside them, in Markdown."""

import math
from collections.abc import Iterable, Mapping
from pathlib import Path

from benchmarks.study import pictures
from benchmarks.study.digits import DECOUPLED, L2
from benchmarks.study.plan import (
    BOUNDS,
    DECAYED,
    EXPLAINED,
    FACTORS,
    PER_ENTRY_OF,
    READERS,
    SENSITIVE,
    STARTS,
    WARM_UPS,
    WARMED,
    Part,
)
from benchmarks.study.records import Record
from benchmarks.study.standings import (
    ADAM,
    Standing,
    Standings,
    adams_goal,
    beside,
    median_steps_to,
    standings,
)
from benchmarks.timing import table

INTRODUCTION = f"""# Training

Made of [training.jsonl](training.jsonl), a line for each training, by `python -m
benchmarks.training --report`; `python -m benchmarks.training` runs what is missing
before. Every contender has five learning rates, half a decade apart, around a middle
of its own (`study/contenders.py`), which rise for 5 % of the steps and fall along half
a cosine. They are tried with seed 0; the one of the least validation loss is repeated
with seeds 1 and 2, on the same data for all. *Loss* is on a test part that chose
nothing: median, least and largest of the three seeds, in nats. A rate marked `<` or `>`
is the lowest or highest that was tried, so a better one may lie beyond. Nothing but
learning rates is tuned, and there is no weight decay but where a title says so (of
matrices: L2 {L2:g}, decoupled {DECOUPLED:g}).

*Beside Adam* is the median loss less Adam's, as a share of it, and in how many seeds it
was lower. *Steps to Adam's* is when the validation loss was as low as Adam's at its
end, *seconds* that times the fastest step that any of its trainings saw (one thread,
two trainings at a time). *Rarely active* are hidden neurons that fewer than 1 % of the
test images activate.
"""
EXTRAS = "accuracy", "rarely active", "rare loss"  # measured beside the loss


def write_report(
    records: Iterable[Record], plan: Mapping[str, Part], folder: Path
) -> None:
    """Write ``TRAINING.md`` and its pictures of what has been recorded."""
    placed = standings(records, plan)
    main = {name: of for name, of in placed.items() if ADAM in of}
    sections = [INTRODUCTION, summary(main)]
    if "language" in main:
        chosen = main["language"]
        pictures.courses(chosen, folder / "training_courses.png")
        pictures.rates_tried(chosen, folder / "training_rates.png")
        pictures.bytes_and_loss(chosen, folder / "training_bytes.png")
        sections += [PICTURES, explained(chosen)]
    for problem, of in main.items():
        sections.append(f"## {problem}\n\n{problem_table(of, plan[problem])}")
    if "narrow" in placed:
        sections.append(sensitivity(placed["narrow"], folder))
    sections += [decays(main), neuron_rates(main)]
    text = "\n".join(sections)
    (folder / "TRAINING.md").write_text(text.rstrip("\n") + "\n")


PICTURES = """
![Validation loss of the language model over training](training_courses.png)
![Validation loss of the language model against the learning rate](training_rates.png)
![Test loss of the language model against the bytes of the state](training_bytes.png)
"""


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


def summary(main: Mapping[str, Standings]) -> str:
    """Return every contender's loss beside Adam's, over all problems."""
    names = list(dict.fromkeys(name for of in main.values() for name in of))
    names = [name for name in names if not is_variant(name)]
    columns = [problem for problem in main if "," not in problem]
    rows = []
    for name in names:
        cells = [
            against_adam(main[problem], name) if name in main[problem] else ""
            for problem in columns
        ]
        if any(cells):
            rows.append([name, *cells])
    return f"## Beside Adam\n\n{table(['contender', *columns], rows)}"


def is_variant(name: str) -> bool:
    """Whether a contender is there for what another one is sensitive to."""
    return name in SENSITIVE or name in EXPLAINED


def against_adam(placed: Standings, name: str) -> str:
    """Return the share by which the loss exceeds Adam's, and in how many seeds."""
    found = beside(placed[name], placed[ADAM])
    if name == ADAM:
        return "0"
    if math.isinf(found.share):
        return "diverges"
    return f"{found.share:+.1%} ({found.better} of {found.seeds})"


def problem_table(placed: Standings, part: Part) -> str:
    """Return a line for every contender, best first."""
    extras = [name for name in EXTRAS if name in placed[ADAM].seeds[0].test]
    goal = adams_goal(placed)
    rows = []
    for name in sorted(placed, key=lambda name: placed[name].median()):
        if is_variant(name):
            continue
        of = placed[name]
        steps = median_steps_to(goal, of)
        reached = math.isfinite(steps)
        rows.append(
            [
                name,
                tried_rate(of),
                losses(of),
                against_adam(placed, name),
                *(f"{of.median(extra):.3f}" for extra in extras),
                f"{of.state_bytes:,}",
                f"{of.milliseconds:.3g}",
                f"{steps:.0f}" if reached else "never",
                f"{1e-3 * steps * of.milliseconds:.3g}" if reached else "",
            ]
        )
    head = ["contender", "rate", "loss", "beside Adam", *extras, "state bytes"]
    return table([*head, "ms per step", "steps to Adam's", "seconds"], rows)


def tried_rate(of: Standing) -> str:
    """Return the best rate, and whether it is the lowest or highest of those tried."""
    if not of.at_edge:
        return f"{of.rate:g}"
    return f"{'<' if of.rate == of.tried[0].rate else '>'} {of.rate:g}"


def losses(of: Standing) -> str:
    """Return median, least and largest of the seeds."""
    found = of.test()
    if math.isinf(of.median()):
        return "diverges"
    return f"{of.median():.4f} ({min(found):.4f} to {max(found):.4f})"


def sensitivity(placed: Standings, folder: Path) -> str:
    """Return what starts, corrections, warm-up and factors do on the narrow network."""
    lines = ["## What it is sensitive to\n\nOn *narrow*, each tuned like the others:\n"]
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
    """Return what the factor of `weight_norm_adam` does, with and without bounds."""
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
        "The scaling factor of `weight_norm_adam` at Adam's learning rate 0.003; "
        f"a network that answers chance has a loss of {math.log(10):.2f}:\n\n"
    )
    return said + table(["scaling factor", *head], rows)


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
        "highest learning rate times the factor of the neurons of a kernel, least, "
        "median and largest. Which direction they multiply differs.\n"
    ]
    for problem, placed in main.items():
        rows = [
            [name, path, *(f"{rates[at]:.2g}" for at in (0, 2, 4)), spread(rates)]
            for name, of in placed.items()
            if not is_variant(name) and len(of.seeds) > 1
            for path, rates in shown_rates(problem, of.seeds[1].rates)
        ]
        if rows:
            head = ["contender", "kernel", "least", "median", "largest", "decades"]
            lines += [f"### {problem}\n", table(head, rows)]
    return "\n".join(lines)


def shown_rates(problem: str, rates: Mapping[str, list[float]]) -> list:
    """Return the rates of all kernels, of a deep network of its first, middle, last."""
    paths = sorted(rates)
    if len(paths) > 4:
        paths = [paths[0], paths[len(paths) // 2], paths[-1]]
    return [(path, rates[path]) for path in paths]


def spread(rates: list[float]) -> str:
    """Return the decades from the least rate to the largest."""
    least, largest = rates[0], rates[-1]
    return f"{math.log10(largest / least):.1f}" if 0 < least <= largest else ""
