"""Rates over training: of every layer, and of every neuron of one."""

import itertools
import math
from collections.abc import Iterable, Mapping
from typing import Any, SupportsFloat

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from neuron_optax.plot.panels import (
    ABSENCE,
    BLUE,
    COLUMNS,
    DPI,
    GRADIENT,
    chosen,
    drawable,
    set_title,
    small_multiples,
)
from neuron_optax.trees import named_leaves

COLORS = "#D55E00", "#009E73", "#000000", "#CC79A7", "#E69F00"
DASHES = "-", "--", ":", "-.", (0, (6, 1, 1, 1, 1, 1)), (0, (9, 3))
BANDS = {  # quantiles of the neurons of a layer, and a tint of blue
    "5 to 95 % of the neurons": (0.05, 0.95, "#CCE3F0"),
    "25 to 75 %": (0.25, 0.75, "#85BBDA"),
}
BELOW = 5.2  # letters from a panel to the names of its outliers, beyond its label
LINE = 0.16  # inches of a line of such names
FENCE, LEAST = 3.0, np.log10(1.01)  # of outliers: quartile ranges, and 1 %


def plot_rates(
    history: Iterable[Any],
    steps: Iterable[SupportsFloat] | None = None,
    *,
    layers: str = "",
    outliers: int = 5,
    unit: str = GRADIENT,
) -> Figure:
    """Draw the rates of every layer over training: median, bands and outliers.

    Layers stand side by side and share their axes. An outlier is a neuron whose last
    rate is, in logarithm, more than three times the distance of the quartiles beyond
    the nearer one, and more than 1 % beyond it; its number stands below the panel.

    Args:
      history: what `learning_rates` returned at each recorded step.
      steps: the recorded steps, increasing; ``None`` for 1, 2, ...
      layers: regular expression; drawn are leaves in whose path it is found.
      outliers: how many are drawn at most for each layer, the farthest.
      unit: of the rates.

    Returns:
      A figure with one of ``axes`` for each layer.

    Raises:
      TypeError: if ``history`` is one tree.
      ValueError: if ``history`` is empty, its trees have no leaves or differ in them,
        ``steps`` are not as many, not finite or do not increase, ``layers`` is found in
        no path or in more than fit in a figure, or ``outliers`` is negative.

    Example:
      >>> rates = np.array([[0.1, 0.2, 0.3]])
      >>> figure = plot_rates([{"kernel": rates}, {"kernel": rates / 2}], [10, 20])
      >>> median, *_ = figure.axes[0].lines
      >>> [round(float(rate), 2) for rate in median.get_ydata()]
      [0.2, 0.1]
    """
    if outliers < 0:
        raise ValueError(f"outliers must be at least 0, got {outliers}")
    recorded, at = _recorded(history, steps)
    drawn = {path: recorded[path] for path in chosen(recorded, layers)}
    figure, panels = small_multiples(drawn, "step", f"learning rate [{unit}]", ABSENCE)
    for axes, rates in zip(panels, drawn.values(), strict=True):
        _draw_bands(axes, at, rates)
        _draw_outliers(axes, at, rates, outliers)
        axes.update_datalim([(at[0], 1), (at[-1], 1)], updatey=False)
        axes.xaxis.set_major_locator(_whole_numbers())
    if most := max(len(axes.lines) for axes in panels) - 1:  # beside the median
        names = (0.3 + LINE * math.ceil(most / 2)) * math.ceil(len(panels) / COLUMNS)
        figure.set_figheight(figure.get_figheight() + names)
    shown = panels[0].get_legend_handles_labels()[0][: len(BANDS) + 1]
    columns = min(len(drawn), len(shown))
    figure.legend(handles=shown, loc="outside lower center", ncols=columns)
    return figure


def plot_neurons(
    history: Iterable[Any],
    layer: str,
    steps: Iterable[SupportsFloat] | None = None,
    *,
    sort: bool = False,
    unit: str = GRADIENT,
) -> Figure:
    """Draw the rate of every neuron of a layer at every step, as a heat map.

    Colours are logarithmic; cells without a rate are hatched.

    Args:
      history: as for `plot_rates`.
      layer: path of the leaf.
      steps: as for `plot_rates`.
      sort: order the neurons by their last rate, the largest on top.
      unit: of the rates.

    Returns:
      A figure of the map and its colour bar.

    Raises:
      TypeError: as `plot_rates`.
      ValueError: as `plot_rates`, and if no leaf has the path ``layer``.

    Example:
      >>> rates = np.array([[0.1, 0.2, 0.3]])
      >>> figure = plot_neurons([{"kernel": rates}] * 2, "kernel", unit="parameter")
      >>> figure.axes[1].get_ylabel()
      'learning rate [parameter]'
    """
    recorded, at = _recorded(history, steps)
    if layer not in recorded:
        raise ValueError(f"layer must be one of {sorted(recorded)}, got {layer!r}")
    rates = recorded[layer]
    order = np.argsort(np.nan_to_num(rates[-1]), kind="stable")
    figure = Figure(figsize=(6.5, 4), dpi=DPI, layout="constrained")
    axes = figure.subplots()
    image = _draw_cells(axes, at, rates[:, order] if sort else rates)
    figure.colorbar(image, label=f"learning rate [{unit}]")
    rows = "rank of the neuron by its last rate" if sort else "neuron"
    axes.set(xlabel="step", ylabel=rows)
    set_title(axes, layer, rates, f"hatched: {ABSENCE}")
    return figure


def _recorded(
    history: Iterable[Any], steps: Iterable[SupportsFloat] | None
) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Return the rates of every leaf, steps x neurons, and the steps."""
    if isinstance(history, Mapping):
        raise TypeError("history must be a sequence of trees, got one tree")
    trees = [
        {path: drawable(leaf) for path, leaf in named_leaves(tree) if np.size(leaf)}
        for tree in history
    ]
    if not trees:
        raise ValueError("history must hold the rates of a step at least, got none")
    shapes = [{path: rates.shape for path, rates in tree.items()} for tree in trees]
    for number, came in enumerate(shapes):
        if came != shapes[0]:
            raise ValueError(
                f"history[{number}] must have the leaves and neurons of history[0], "
                f"{shapes[0]}, got {came}"
            )
    if not shapes[0]:
        raise ValueError("history must have leaves with neurons, got trees of none")
    at = np.asarray(range(1, 1 + len(trees)) if steps is None else list(steps), float)
    rising = np.all(np.isfinite(at)) and np.all(np.diff(at) > 0)
    if at.shape != (len(trees),) or not rising:
        raise ValueError(
            f"steps must be {len(trees)} finite numbers that increase, got {steps}"
        )
    return {path: np.stack([tree[path] for tree in trees]) for path in trees[0]}, at


def _draw_cells(axes: Axes, steps: np.ndarray, rates: np.ndarray) -> Any:
    """Draw a cell for each neuron at each step; hatches show where there is none."""
    values = np.ma.masked_invalid(rates).T
    seen = values.compressed() if values.count() else np.ones(1)
    norm = LogNorm(0.99 * seen.min(), 1.01 * seen.max())  # which may not be one number
    edges = _edges(steps), _edges(np.arange(len(values)))
    axes.patch.set(hatch="////", edgecolor="0.6")
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(_whole_numbers())
    return axes.pcolormesh(*edges, values, norm=norm, cmap="viridis", rasterized=True)


def _edges(centres: np.ndarray) -> np.ndarray:
    """Return the edges of cells, halfway between their centres."""
    gaps = np.diff(centres) if len(centres) > 1 else np.ones(1)
    ends = centres[0] - gaps[0], centres[-1] + gaps[-1]
    padded = np.concatenate([ends[:1], centres, ends[1:]])
    return (padded[1:] + padded[:-1]) / 2


def _whole_numbers() -> MaxNLocator:
    return MaxNLocator("auto", integer=True, min_n_ticks=1)


def _draw_bands(axes: Axes, steps: np.ndarray, rates: np.ndarray) -> None:
    """Draw median and bands of the neurons that have a rate at a step."""
    alone = len(steps) == 1  # a line of one point needs a mark to be seen
    some = np.isfinite(rates).any(axis=1)

    def quantile(share):
        values = np.full(len(rates), np.nan)
        values[some] = np.nanquantile(rates[some], share, axis=1)
        return values

    for label, (low, high, color) in BANDS.items():
        style = {"color": color, "linewidth": 8 if alone else 0}
        axes.fill_between(steps, quantile(low), quantile(high), label=label, **style)
    style = {"color": BLUE, "linewidth": 2.5, "marker": "o" if alone else ""}
    axes.plot(steps, quantile(0.5), label="median", **style)


def _draw_outliers(axes: Axes, steps: np.ndarray, rates: np.ndarray, most: int) -> None:
    """Draw the farthest outliers as lines, named in the order of their last rates."""
    last = np.log10(rates[-1])
    if most == 0 or np.isnan(last).all():
        return
    low, high = np.nanquantile(last, [0.25, 0.75])
    beyond = np.nan_to_num(np.maximum(low - last, last - high))
    far = np.flatnonzero(beyond > max(FENCE * (high - low), LEAST))
    if not len(far):
        return
    kept = far[np.argsort(-beyond[far], kind="stable")][:most]
    named = kept[np.argsort(-last[kept], kind="stable")]
    mark = "o" if len(steps) == 1 else ""
    looks = zip(named, itertools.cycle(COLORS), itertools.cycle(DASHES), strict=False)
    for neuron, color, dashes in looks:
        style = {"color": color, "linestyle": dashes, "linewidth": 1.2}
        style |= {"marker": mark, "label": f"neuron {neuron}"}
        axes.plot(steps, rates[:, neuron], **style)
    title = "outliers"
    if len(kept) < len(far):
        title = f"{len(kept)} of {len(far)} outliers"
    look = {"fontsize": "x-small", "title_fontsize": "x-small", "frameon": False}
    look |= {"loc": "upper center", "bbox_to_anchor": (0.5, 0), "ncols": 2}
    axes.legend(handles=axes.lines[1:], title=title, borderaxespad=BELOW, **look)
