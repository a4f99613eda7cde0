"""Tables of all records, and the pictures beside them, in Markdown."""

import math
from collections.abc import Iterable, Mapping
from pathlib import Path

from benchmarks.study import pictures
from benchmarks.study.cells import (
    against,
    against_adam,
    is_variant,
    losses,
    tried_rate,
)
from benchmarks.study.digits import DECOUPLED, L2
from benchmarks.study.neurons import decays, neuron_rates
from benchmarks.study.plan import Part
from benchmarks.study.records import Record
from benchmarks.study.sensitivity import explained, sensitivity
from benchmarks.study.standings import (
    ADAM,
    Standings,
    standings,
    steps_to_adams,
)
from benchmarks.timing import table

RUN_ON = (
    "Run on 2 cores of an AMD EPYC with Python 3.11.7, whose standard library is the "
    "text, jax 0.10.2, optax 0.2.8 and flax 0.12.8; no GPU was lent."
)
INTRODUCTION = f"""# Training

Made of [training.jsonl](training.jsonl), a line for each training, by `python -m
benchmarks.training --report`; `python -m benchmarks.training` runs what is missing
before. {RUN_ON}

Every contender has five learning rates, half a decade apart, around a middle of its own
(`study/contenders.py`), which rise for 5 % of the steps and fall along half a cosine.
They are tried with seed 0; while the best is the lowest or the highest of them, another
one follows beyond it, two at most. The rate of the least validation loss is repeated
with seeds 1 and 2. A seed draws the start and the order of the data, of clicks also the
world, for all contenders alike; fine-tuning starts from one model for all seeds. *Loss*
is on a test part that chose nothing: median, least and largest of the three seeds, in
nats. A rate marked `<` or `>` is the lowest or highest that was tried. Nothing but the
learning rate is tuned. Settings are defaults, but for a momentum of 0.9 in `sgd`,
`frequency_sgd` and `hypergradient_sgd`, a `scaling_factor` of 1 in `weight_norm_adam`,
and Adam's rate for what is no hidden matrix in Muon and NorMuon, 0.15 of theirs. On
clicks the tables are the contender's, Adam trains the dense layers, and Optax's AdaGrad
and RMSprop have an epsilon as small as ours, because gradients are. There is no weight
decay but where a title says so, of matrices: `L2` adds {L2:g} of them to their
gradients, `decoupled` shrinks them by {DECOUPLED:g} in a step, less as the learning
rate rises and falls, however high it is.

*Beside Adam* is the median loss less Adam's, as a share of it, and in how many seeds it
was lower. *Steps to Adam's* is when the validation loss was as low as Adam's at the end
of the same seed, *seconds* that times a step of the fastest twelfth of all its
trainings (one thread, two trainings at a time). *Rarely active* are hidden neurons that
fewer than 1 % of the test images activate.
"""
RARE = "rare loss"
EXTRAS = "accuracy", "rarely active", RARE  # measured beside the loss


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
    if "clicks" in main:
        sections.append(rare_ids(main["clicks"]))
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


def rare_ids(placed: Standings) -> str:
    """Return losses on the tenth of impressions whose items training saw least."""
    rows = [
        [
            name,
            losses(placed[name], RARE),
            *(against(placed, name, other, RARE) for other in ("sgd", ADAM)),
            f"{placed[name].state_bytes / placed[ADAM].state_bytes:.1%}",
        ]
        for name in sorted(placed, key=lambda name: placed[name].median(RARE))
    ]
    head = ["contender", RARE, "beside SGD", "beside Adam", "state, of Adam's"]
    return (
        "## Rare ids\n\nOf *clicks*, the tenth of the impressions whose items training "
        f"saw least; the rate is that of the whole:\n\n{table(head, rows)}"
    )


def problem_table(placed: Standings, part: Part) -> str:
    """Return a line for every contender, best first."""
    extras = [name for name in EXTRAS if name in placed[ADAM].seeds[0].test]
    rows = []
    for name in sorted(placed, key=lambda name: placed[name].median()):
        if is_variant(name):
            continue
        of = placed[name]
        steps = steps_to_adams(of, placed[ADAM])
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
