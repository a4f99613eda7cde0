"""Which layers may share second moments: SlimAdam's criterion, read from a state."""

from neuron_optax.advice.ratios import SignalToNoise, granularities, snr
from neuron_optax.advice.suggestions import suggest_layout

__all__ = ["SignalToNoise", "granularities", "snr", "suggest_layout"]
