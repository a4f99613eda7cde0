"""Which axes of a leaf index its neurons: the first of the four parts of a strategy."""

from neuron_optax.axes.describing import describe
from neuron_optax.axes.inference import infer_layout
from neuron_optax.axes.layouts import Layout, Rule, as_layout
from neuron_optax.axes.libraries import (
    ADAM_MINI,
    FLAX,
    HAIKU,
    PER_ENTRY,
    PER_LAYER,
    SLIM_ADAM,
    TORCH,
)
from neuron_optax.axes.neurons import Axes, MatrixAxes, Neurons
from neuron_optax.axes.siblings import kernel_of, lend
from neuron_optax.axes.views import check_numbers, check_pieces, map_axes, unview, view

__all__ = [
    "ADAM_MINI",
    "FLAX",
    "HAIKU",
    "PER_ENTRY",
    "PER_LAYER",
    "SLIM_ADAM",
    "TORCH",
    "Axes",
    "Layout",
    "MatrixAxes",
    "Neurons",
    "Rule",
    "as_layout",
    "check_numbers",
    "check_pieces",
    "describe",
    "infer_layout",
    "kernel_of",
    "lend",
    "map_axes",
    "unview",
    "view",
]
