"""Readers who do not see all colours tell the lines of the pictures apart."""

import itertools

import matplotlib
import numpy as np
import pytest
from matplotlib.colors import to_rgb

from neuron_optax.plot import plot_neurons
from neuron_optax.plot.training import BLUE, COLORS, DASHES

GREY = np.array([0.2126, 0.7152, 0.0722, 0])

# Linear RGB as seen without one kind of cones, Machado et al. 2009, severity 1.
BLIND = {
    "protanopia": [
        [0.152286, 1.052583, -0.204868],
        [0.114503, 0.786281, 0.099216],
        [-0.003882, -0.048116, 1.051998],
    ],
    "deuteranopia": [
        [0.367322, 0.860646, -0.227968],
        [0.280085, 0.672501, 0.047413],
        [-0.011820, 0.042940, 0.968881],
    ],
}


def closest(colors, matrix):
    """Return the least distance of two of the colours as seen."""
    seen = [np.array(matrix) @ np.array(to_rgb(color)) ** 2.2 for color in colors]
    seen = [np.clip(color, 0, 1) ** (1 / 2.2) for color in seen]
    return min(np.linalg.norm(a - b) for a, b in itertools.combinations(seen, 2))


@pytest.mark.parametrize("matrix", BLIND.values(), ids=BLIND)
def test_the_colour_blind_tell_the_lines_apart(matrix):
    assert closest([BLUE, *COLORS], matrix) > 0.15
    red_and_olive = "#C00000", "#606000"
    assert closest(red_and_olive, matrix) < 0.15 < closest(red_and_olive, np.eye(3))


def test_lines_differ_without_colours():
    assert len(set(DASHES)) == len(DASHES) > len(COLORS)
    lightness = lambda name: matplotlib.colormaps[name](np.linspace(0, 1, 99)) @ GREY
    assert np.all(np.diff(lightness("viridis")) > 0)
    assert not np.all(np.diff(lightness("jet")) > 0)
    (mesh,) = plot_neurons([np.ones(3)], "").axes[0].collections
    assert mesh.get_cmap().name == "viridis"
