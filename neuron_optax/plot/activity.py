"""Rates against how often a neuron was active."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from neuron_optax.plot.panels import (
    ABSENCE,
    BLUE,
    GRADIENT,
    chosen,
    drawable,
    small_multiples,
)
from neuron_optax.trees import named_leaves


def plot_frequency(
    rates: Any, frequency: Any, *, layers: str = "", unit: str = GRADIENT
) -> Figure:
    """Draw the rate of every neuron against how often it was active.

    Args:
      rates: what `learning_rates` returned.
      frequency: tree of the share of steps in which a neuron had a gradient, in
        ``[0, 1]``, for some or all leaves of ``rates``, whose shapes it has.
      layers: regular expression; drawn are leaves in whose path it is found.
      unit: of the rates.

    Returns:
      A figure with one of ``axes`` for each leaf of ``frequency``, both logarithmic; a
      neuron that was never active is left out, as one without a rate.

    Raises:
      ValueError: if ``frequency`` has no leaves, one is out of range, has no rates or
        other shapes than they, or if ``layers`` is found in no path, or in more than
        fit in a figure.

    Example:
      >>> rates = {"kernel": np.array([[0.1, 1.0]])}
      >>> figure = plot_frequency(rates, {"kernel": np.array([[1.0, 0.01]])})
      >>> figure.axes[0].get_xlabel()
      'activation frequency [share of steps]'
    """
    named = dict(named_leaves(rates))
    given = named_leaves(frequency)
    shares = {path: np.asarray(share) for path, share in given if np.size(share)}
    if not shares:
        raise ValueError("frequency must have leaves with neurons, got none")
    for path, share in shares.items():
        _check_share(path, share, named)
    drawn = {
        path: np.where(np.ravel(shares[path]) > 0, drawable(named[path]), np.nan)
        for path in chosen(shares, layers)
    }
    xlabel, ylabel = "activation frequency [share of steps]", f"learning rate [{unit}]"
    figure, panels = small_multiples(
        drawn, xlabel, ylabel, f"never active, or rate {ABSENCE}"
    )
    least = min(
        np.min(shares[path], initial=1, where=shares[path] > 0) for path in drawn
    )
    for axes, (path, values) in zip(panels, drawn.items(), strict=True):
        axes.set_xscale("log")
        axes.set_xlim(0.8 * min(least, 0.5), 1.2)  # no share is greater than 1
        known = np.isfinite(values)
        axes.scatter(
            np.ravel(shares[path])[known],
            values[known],
            **{"s": 22, "color": BLUE, "alpha": 0.5, "linewidth": 0},
            rasterized=True,
        )
    return figure


def _check_share(path: str, share: np.ndarray, rates: Mapping[str, Any]) -> None:
    if path not in rates:
        raise ValueError(f"{path}: frequency must have rates, which has {list(rates)}")
    if share.shape != np.shape(rates[path]):
        raise ValueError(
            f"{path}: frequency must have the shape {np.shape(rates[path])} of its "
            f"rates, got {share.shape}"
        )
    if not np.all((share >= 0) & (share <= 1)):
        raise ValueError(
            f"{path}: frequency must be in [0, 1], got {share.min()} to {share.max()}"
        )
