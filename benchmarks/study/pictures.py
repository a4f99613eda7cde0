"""Pictures of the study: losses against rates, bytes and the scaling factor."""

from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from benchmarks.study.cells import redistributed
from benchmarks.study.contenders import OPTAX
from benchmarks.study.plan import BOUNDS, EXPLAINED, FACTORS
from benchmarks.study.standings import ADAM, Standing, Standings, marks
from neuron_optax.plot import save

COLORS = "#0072B2", "#D55E00", "#009E73"
MARKERS = "o", "s", "^"
LOOK: Any = {"axes.spines.top": False, "axes.spines.right": False, "axes.grid": True}
LOOK |= {"grid.alpha": 0.25, "legend.frameon": False, "font.size": 10}
COLUMNS = 5  # of panels
ALIKE, OFFSET, LINES, ROOM = 1.6, 1.09, 38, 3  # of names beside points
MOST = 8  # courses that a reader can tell apart, the best
HIGH = 1e3  # stands for a loss that is not finite
WORST = 1.35  # of Adam's loss: what is higher lies at the edge, or is left out


def courses(placed: Standings, path: Path) -> None:
    """Draw the validation loss over training, at the best rate: median over seeds."""
    with matplotlib.rc_context(LOOK):
        figure = Figure(figsize=(12, 5), dpi=100, layout="constrained")
        left, right = figure.subplots(1, 2, sharey=True)
        for axes, title in ((left, "Optax"), (right, "one rate per neuron")):
            names = [name for name in placed if (name in OPTAX) == (axes is left)]
            names = [
                name
                for name in names
                if not redistributed(name) and name not in EXPLAINED
            ]
            names = sorted(names, key=lambda name: placed[name].median())[:MOST]
            for number, name in enumerate(names):
                draw_course(axes, name, placed[name], f"C{number}")
            draw_course(axes, "adam" if axes is right else "", placed[ADAM], "black")
            axes.set(title=title, xlabel="step")
            axes.legend(fontsize=8)
        left.set_ylabel("validation loss [nats per byte]")
        save(figure, path)


def draw_course(axes: Axes, label: str, of: Standing, color: str) -> None:
    """Draw the median over seeds; a training that ended early is as long as it was."""
    whole = min(len(record.validation) for record in of.seeds)
    middle = np.median([record.validation[:whole] for record in of.seeds], axis=0)
    (line,) = axes.plot(marks(of.seeds[0])[:whole], middle, color=color)
    line.set(label=label or None, ls="--" if color == "black" else "-")


def rates_tried(placed: Standings, path: Path) -> None:
    """Draw the last validation loss of every contender against its learning rate."""
    names = [name for name in placed if not redistributed(name) and name != ADAM]
    names = [name for name in names if len(placed[name].tried) > 1]
    adam = placed[ADAM]
    top = WORST * min(record.score for record in adam.tried)
    bottom = 0.97 * min(of.score for name in names for of in placed[name].tried)
    with matplotlib.rc_context(LOOK):
        rows = -(-len(names) // COLUMNS)
        size = 2.9 * COLUMNS, 0.6 + 2.3 * rows
        figure = Figure(figsize=size, dpi=100, layout="constrained")
        panels = figure.subplots(rows, COLUMNS, sharey=True, squeeze=False).ravel()
        for axes in panels[len(names) :]:
            axes.remove()
        for axes, name in zip(panels, names, strict=False):
            draw_rates(axes, "adam", adam, "0.6", "--", top)
            draw_rates(axes, "itself", placed[name], COLORS[0], "-", top)
            if other := placed.get(f"{name}, redistributed"):
                draw_rates(axes, "redistributed", other, COLORS[1], ":", top)
            axes.set(xscale="log", ylim=(bottom, top))
            axes.set_title(name, fontsize=10, loc="left")
        for axes in panels[: len(names) : COLUMNS]:
            axes.set_ylabel("validation loss\n[nats per byte]")
        for axes in panels[max(len(names) - COLUMNS, 0) : len(names)]:
            axes.set_xlabel("highest learning rate")
        most = max(panels[: len(names)], key=lambda axes: len(axes.lines))
        figure.legend(
            *most.get_legend_handles_labels(), loc="outside lower center", ncols=3
        )
        save(figure, path)


def draw_rates(
    axes: Axes, label: str, of: Standing, color: str, style: str, top: float
) -> None:
    """Draw the losses of one contender; those beyond the axis lie on its edge."""
    rates = [record.rate for record in of.tried]
    scores = np.minimum([record.score for record in of.tried], top)
    axes.plot(rates, scores, color=color, ls=style, marker=".", label=label)


def bytes_and_loss(placed: Standings, path: Path) -> None:
    """Draw the test loss of every contender against the bytes of its state."""
    groups = {
        "Optax": [name for name in placed if name in OPTAX],
        "one rate per neuron": [
            name
            for name in placed
            if name not in OPTAX | EXPLAINED and not redistributed(name)
        ],
        "the same, redistributed": [name for name in placed if redistributed(name)],
    }
    worst = WORST * placed[ADAM].median()
    with matplotlib.rc_context(LOOK):
        figure = Figure(figsize=(11, 7), dpi=100, layout="constrained")
        axes = figure.subplots()
        for number, (label, names) in enumerate(groups.items()):
            good = [name for name in names if placed[name].median() < worst]
            sizes = [placed[name].state_bytes / 1e6 for name in good]
            middles = np.array([placed[name].median() for name in good])
            tests = [placed[name].test() for name in good]
            low = middles - [min(test) for test in tests]
            high = [min(max(test), worst) for test in tests] - middles
            axes.errorbar(
                sizes,
                middles,
                yerr=[low, high],
                **{"fmt": MARKERS[number], "color": COLORS[number], "label": label},
                **{"alpha": 0.8, "capsize": 2, "elinewidth": 1},
            )
        axes.set(xscale="log", xlabel="state of the optimizer [MB]")
        axes.set_ylabel("test loss, median and range of three seeds [nats per byte]")
        named = groups["Optax"] + groups["one rate per neuron"]
        named = [name for name in named if placed[name].median() < worst]
        sizes = [placed[name].state_bytes / 1e6 for name in named]
        name_points(axes, named, sizes, np.array([placed[of].median() for of in named]))
        axes.set_xlim(min(sizes) / ROOM, max(sizes) * ROOM)
        axes.legend()
        save(figure, path)


def name_points(
    axes: Axes, names: list[str], sizes: list[float], losses: np.ndarray
) -> None:
    """Write names beside points, apart where sizes are alike, the largest right."""
    low, high = axes.get_ylim()
    taken: list[tuple[float, float]] = []  # sizes and heights of the names so far
    for at in np.argsort(losses):
        near = [y for size, y in taken if 1 / ALIKE < size / sizes[at] < ALIKE]
        y = max(losses[at], *(height + (high - low) / LINES for height in near), low)
        taken.append((sizes[at], float(y)))
        arrow = {"arrowstyle": "-", "color": "0.6", "lw": 0.7}
        how: Any = {"fontsize": 8, "va": "center", "arrowprops": arrow}
        right = sizes[at] * ALIKE > max(sizes)
        how["ha"] = "left" if right else "right"
        place = sizes[at] * OFFSET if right else sizes[at] / OFFSET
        axes.annotate(names[at], (sizes[at], losses[at]), (place, y), **how)


def factors(placed: Standings, path: Path) -> None:
    """Draw the test loss against the scaling factor of `weight_norm_adam`."""
    with matplotlib.rc_context(LOOK):
        figure = Figure(figsize=(8, 4.5), dpi=100, layout="constrained")
        axes = figure.subplots()
        for number, bound in enumerate(BOUNDS):
            names = {f"weight_norm_adam, factor {of:g}{bound}": of for of in FACTORS}
            names = {name: of for name, of in names.items() if of and name in placed}
            if not names:
                continue
            known = list(names.values())
            tests = np.minimum([placed[name].test() for name in names], HIGH)
            label = bound.removeprefix(", ") or "no bound"
            (line,) = axes.plot(known, np.median(tests, axis=1), label=label)
            line.set(color=COLORS[number], marker=MARKERS[number])
            low, high = tests.min(axis=1), tests.max(axis=1)
            axes.fill_between(known, low, high, color=COLORS[number], alpha=0.15)
        axes.axhline(np.log(10), color="0.4", ls="--", label="chance")
        axes.set(xscale="log", xlabel="scaling factor [1 / norm of the weights]")
        axes.set_ylabel("test loss [nats]")
        axes.set_ylim(0, 2 * np.log(10))
        axes.legend()
        save(figure, path)
