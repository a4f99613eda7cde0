"""How does an optimizer step grow with parameters, with neurons and with leaves?

Parameters grow at 12 leaves; neurons and leaves at 50 million parameters. The sizes of
a contender take turns. ``growth.png`` has logarithmic axes: a power is a slope.
"""

import argparse
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import matplotlib
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, NullLocator
from tqdm import tqdm

from benchmarks.contenders import STREAM, compiled
from benchmarks.timing import header, itemized, power, race, table
from benchmarks.workloads import dense, draw

OURS = ["neuron_adagrad", "adam_mini"]
NAMES = [STREAM, "optax.adagrad", "optax.adam", *OURS]
COLORS = ["#666666", "#DDAA33", "#CC6677", "#0072B2", "#117733"]
MARKERS = ["x", "s", "D", "o", "^"]
LAYERS, WIDTH, LEAVES = 12, 2048, 400


class Axis(NamedTuple):
    """What grows: its sizes, the tree of each, and where its power is looked for."""

    sizes: list[int]
    trees: list[Any]
    fitted: slice


def rectangles(neurons: int, width: int) -> Any:
    """Return kernels of so many neurons, as large as square ones of the width."""
    kernel = jax.ShapeDtypeStruct((width**2 // neurons, neurons), jnp.float32)
    return {f"layer_{number:03}": {"kernel": kernel} for number in range(LAYERS)}


def pieces(leaves: int, width: int) -> Any:
    """Return so many square kernels of about as many parameters together."""
    return dense(leaves, round(width * math.sqrt(LAYERS / leaves)))


def axes(width: int, most_leaves: int) -> dict[str, Axis]:
    """Return what grows; ``width`` is that of the kernels where something else does."""
    widths = [width // 4, width // 2, width, 3 * width // 2]
    neurons = [width // 32, width // 8, width // 2, 2 * width, 8 * width]
    leaves = [of for of in (12, 48, 100, 400) if of <= most_leaves]
    return {
        "parameters": Axis(
            [LAYERS * of**2 for of in widths],
            [dense(LAYERS, of) for of in widths],
            slice(1, None),  # the smallest lies in caches
        ),
        "neurons of a kernel": Axis(
            neurons, [rectangles(of, width) for of in neurons], slice(None)
        ),
        "leaves": Axis(leaves, [pieces(of, width) for of in leaves], slice(None)),
    }


def main(arguments: list[str] | None = None) -> dict[str, Any]:
    """Print a table and the powers for everything that grows, and draw them."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.growth", description=__doc__
    )
    parser.add_argument("--width", type=int, default=WIDTH, help="of the kernels")
    parser.add_argument("--leaves", type=int, default=LEAVES, help="at most")
    parser.add_argument("--seconds", type=float, default=3.0, help="for each line")
    parser.add_argument("--figure", default="benchmarks/growth.png")
    options = parser.parse_args(arguments)
    if options.leaves < 48:
        parser.error(f"needs --leaves of 48 or more, got {options.leaves}")
    if options.width < 64 or options.width & (options.width - 1):
        parser.error(f"needs a --width that is a power of two, got {options.width}")
    lines = header("benchmarks.growth", arguments, step="donated; the shortest call")
    print(itemized(lines))
    grown = axes(options.width, options.leaves)
    best = {
        (name, what): measure(name, axis, options.seconds)
        for what, axis in tqdm(grown.items(), desc="axes")
        for name in NAMES
    }
    powers = {
        what: {
            name: power(axis.sizes[axis.fitted], best[name, what][axis.fitted])
            for name in NAMES
        }
        for what, axis in grown.items()
    }
    for what, axis in grown.items():
        print(formatted(what, axis, best, powers[what]))
    if (options.width, options.leaves) == (WIDTH, LEAVES):
        print(reached(powers["parameters"], best))
    draw_all(grown, best, options.figure)
    print(f"\ndrawn in {options.figure}")
    found = {
        what: {"sizes": axis.sizes, **{name: best[name, what] for name in NAMES}}
        for what, axis in grown.items()
    }
    return {"header": lines, "milliseconds": found}


def measure(name: str, axis: Axis, seconds: float) -> list[float]:
    """Return the milliseconds of the shortest step for every size."""
    steps = {
        size: compiled(name, tree, draw(tree, 0)).step
        for size, tree in zip(axis.sizes, axis.trees, strict=True)
    }
    calls = race({str(size): step for size, step in steps.items()}, seconds, title=name)
    return [1e3 * min(calls[str(size)]) for size in axis.sizes]


def formatted(
    what: str,
    axis: Axis,
    best: dict[tuple[str, str], list[float]],
    powers: dict[str, float],
) -> str:
    """Format one line per contender; say which sizes a power was not fitted to."""
    head = [f"ms, by {what}", *(f"{size:,}" for size in axis.sizes)]
    head += ["power" + " without the smallest" * (axis.fitted.start == 1)]
    rows = [
        [name, *(f"{time:.2f}" for time in best[name, what]), f"{powers[name]:.2f}"]
        for name in NAMES
    ]
    return table(head, rows)


def reached(powers: dict[str, float], best: dict[tuple[str, str], list[float]]) -> str:
    """Format one line per bar: the power of parameters, and 400 leaves beside 12."""
    lines = []
    for name in OURS:
        least, most, bar = 0.95, 1.05, 1.5
        sign = "reached" if least <= powers[name] <= most else "missed"
        lines.append(
            f"- {name}: grows with the power {powers[name]:.3f} of the parameters; "
            f"bar {least:.2f} to {most:.2f}: {sign}"
        )
        few, *_, many = best[name, "leaves"]
        sign = "reached" if many / few <= bar else "missed"
        lines.append(
            f"- {name}: 400 leaves / 12 leaves: {many / few:.2f}; bar {bar:.2f}: {sign}"
        )
    return "\n".join(lines)


def draw_all(
    grown: dict[str, Axis], best: dict[tuple[str, str], list[float]], path: str
) -> None:
    """Draw milliseconds against everything that grows."""
    matplotlib.rcParams.update({"font.size": 14, "legend.fontsize": 13})
    figure = Figure(figsize=(16, 6), dpi=100, layout="constrained")
    panels = figure.subplots(1, len(grown), sharey=True)
    for panel, (what, axis) in zip(panels, grown.items(), strict=True):
        for name, color, marker in zip(NAMES, COLORS, MARKERS, strict=True):
            times = best[name, what]
            panel.plot(
                axis.sizes, times, marker, ls="-", color=color, label=name, lw=2, ms=8
            )
        panel.set(xscale="log", yscale="log", xlabel=what)
        panel.set_xticks(axis.sizes)
        panel.xaxis.set_major_formatter(EngFormatter(places=0, sep=""))
        panel.xaxis.set_minor_locator(NullLocator())
        panel.yaxis.set_major_formatter("{x:g}")
        panel.grid(alpha=0.3, which="both")
        panel.spines[["top", "right"]].set_visible(False)
    panels[0].set_ylabel("shortest step [ms]")
    panels[0].legend(frameon=False, loc="upper left")
    figure.savefig(path)


if __name__ == "__main__":
    main()
