"""Between PyTorch and JAX: parameters, optimizer states, runs side by side.

Needs torch (extra ``torch``); importing `neuron_optax` does not import it.
"""

from neuron_optax.interop.compare import compare_with_torch
from neuron_optax.interop.differences import Comparison
from neuron_optax.interop.params import params_from_torch, params_to_torch
from neuron_optax.interop.states import state_from_torch, state_to_torch

__all__ = [
    "Comparison",
    "compare_with_torch",
    "params_from_torch",
    "params_to_torch",
    "state_from_torch",
    "state_to_torch",
]
