"""Pictures of the learning rates of neurons: over training, and against activity.

They are drawn from the trees that `introspection.learning_rates` returns; leaves are
named by their path, and the neurons of a leaf with several axes of them are numbered in
row-major order. A rate that is 0, negative or not finite has no place on a logarithmic
axis: it is left out, and the title of its layer says what share of the rates that is.
Rates beyond 1e-100 and 1e100 are drawn there.

Figures are matplotlib's (extra ``plot``) without pyplot: no window, no backend, no
global state. Their ``axes`` can be changed before they are saved. Colours are those of
Okabe and Ito and of viridis, which colour-blind readers tell apart; dashes and
lightness tell the same in print without colours.
"""

from neuron_optax.plot.activity import plot_frequency
from neuron_optax.plot.panels import save
from neuron_optax.plot.training import plot_neurons, plot_rates

__all__ = ["plot_frequency", "plot_neurons", "plot_rates", "save"]
