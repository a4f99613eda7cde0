"""What the neurons got: their learning rates, read from the state of an optimizer.

Nothing here costs a train step anything: rates are kept by the transformations.
"""

from neuron_optax.introspection.rates import learning_rates
from neuron_optax.introspection.reports import MEANING, LayerRates, Report, report

__all__ = ["MEANING", "LayerRates", "Report", "learning_rates", "report"]
