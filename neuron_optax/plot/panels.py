"""What the pictures share: which rates can be drawn, their panels, and files."""

import os
import re
import textwrap
from collections.abc import Iterable, Mapping
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

GRADIENT = "parameter / gradient"  # unit of a rate that multiplies gradients
ABSENCE = "0 or not finite"
BLUE = "#0072B2"
SPAN = 1e-100, 1e100  # of an axis; matplotlib overflows near the ends of float64
COLUMNS = 4  # of panels
MOST = 40  # panels that a reader can tell apart
DPI = 200
TITLE = 34  # letters that fit over a panel
ABSENT = {"png": {"Software": None}, "svg": {"Date": None}}  # from files, by format


def save(figure: Figure, *paths: str | os.PathLike[str]) -> None:
    """Save a figure in the format of each path.

    No date and no random ids are written: drawn again, the bytes are the same.

    Args:
      figure: of this module, or any other.
      *paths: of files that end in ``.png`` or ``.svg``.

    Raises:
      ValueError: for another ending, before anything is written.

    Example:
      >>> save(Figure(), "rates.pdf")
      Traceback (most recent call last):
      ValueError: path must end in .png or .svg, got 'rates.pdf'
    """
    kinds = [os.path.splitext(path)[1].removeprefix(".") for path in paths]
    for path, kind in zip(paths, kinds, strict=True):
        if kind not in ABSENT:
            raise ValueError(f"path must end in .png or .svg, got {os.fspath(path)!r}")
    with matplotlib.rc_context({"svg.hashsalt": "neuron_optax"}):
        for path, kind in zip(paths, kinds, strict=True):
            figure.savefig(path, metadata=ABSENT[kind])


def drawable(rates: Any) -> np.ndarray:
    """Return the rates of the neurons of a leaf, NaN where there is no logarithm."""
    flat = np.ravel(np.asarray(rates)).astype(float)
    return np.where(np.isfinite(flat) & (flat > 0), np.clip(flat, *SPAN), np.nan)


def chosen(paths: Iterable[str], layers: str) -> list[str]:
    """Return the paths in which the regular expression is found."""
    known = list(paths)
    try:
        found = [path for path in known if re.search(layers, path)]
    except re.error as error:
        raise ValueError(
            f"layers must be a regular expression, got {layers!r}: {error}"
        ) from error
    if not found:
        raise ValueError(f"layers must match one of {known}, got {layers!r}")
    if len(found) > MOST:
        raise ValueError(
            f"{len(found)} layers are more than the {MOST} that fit in a figure: "
            f"choose some by layers=, such as layers={re.escape(found[0])!r}"
        )
    return found


def small_multiples(
    drawn: Mapping[str, np.ndarray], xlabel: str, ylabel: str, absence: str
) -> tuple[Figure, list[Axes]]:
    """Return a figure with a panel for each layer, whose rates are given."""
    columns = min(len(drawn), COLUMNS)
    rows = -(-len(drawn) // columns)
    size = 1.0 + 3.0 * columns, 1.0 + 2.8 * rows
    figure = Figure(figsize=size, dpi=DPI, layout="constrained")
    grid = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False)
    panels = grid.ravel()[: len(drawn)]
    for axes, (path, rates) in zip(panels, drawn.items(), strict=True):
        axes.grid(alpha=0.25)
        axes.set_yscale("log")
        set_title(axes, path, rates, f"not drawn: {absence}")
    for axes in grid.ravel()[len(drawn) :]:
        axes.remove()
    for axes in panels[-columns:]:  # the lowest of each column
        axes.set_xlabel(xlabel)
        axes.tick_params(labelbottom=True)
    for axes in panels[::columns]:
        axes.set_ylabel(ylabel)
    return figure, list(panels)


def set_title(axes: Axes, path: str, rates: np.ndarray, absent: str) -> None:
    """Write the path, how many neurons there are, and what is not drawn of them."""
    count = rates.shape[-1]
    unit = "neuron" if count == 1 else "neurons"
    said = [path.replace("/", "/ "), f"{count:,} {unit}"]
    if share := np.mean(np.isnan(rates)):
        said.append(f"{100 * share:.3g}% {absent}")
    lines = [line for text in said for line in textwrap.wrap(text, TITLE)]
    title = "\n".join(lines).replace("/ ", "/")
    axes.set_title(title, fontsize="medium", loc="left", parse_math=False)
