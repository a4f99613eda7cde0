r"""Named strategies: a name, defaults and one composition each.

In their formulas :math:`g` is the gradient, :math:`w` the weights before the step,
:math:`\eta` the learning rate and :math:`\lambda` the weight decay, which is decoupled:
it enters no statistic.

Under ``optax.inject_hyperparams``, name a function given as ``weight_decay_mask`` in
``static_args``, or it is taken for a schedule. With bfloat16 params hyperparameters
become bfloat16, where 0.999 is 1: give ``hyperparam_dtype=jnp.float32``.
"""

from neuron_optax.strategies.activity import (
    frequency_adam,
    frequency_sgd,
    scale_by_frequency,
)
from neuron_optax.strategies.columns import namo_d
from neuron_optax.strategies.gradients import (
    neuron_adagrad,
    neuron_rmsprop,
    rowwise_adagrad,
)
from neuron_optax.strategies.layers import layerwise, layerwise_decay, scale_by_layer
from neuron_optax.strategies.learned import (
    delta_bar_delta,
    hypergradient_adam,
    hypergradient_sgd,
    scale_by_agreement,
)
from neuron_optax.strategies.lowrank import apollo, scale_by_apollo
from neuron_optax.strategies.magnitudes import muown
from neuron_optax.strategies.moments import adam_mini, slim_adam, subset_norm_adam
from neuron_optax.strategies.normalized import (
    nero,
    neuron_sgd,
    scale_by_initial_norm,
)
from neuron_optax.strategies.orthogonal import normuon, scale_by_normuon
from neuron_optax.strategies.trust import neuron_lamb, neuron_lars
from neuron_optax.strategies.weights import scale_by_weight_norm, weight_norm_adam

__all__ = [
    "adam_mini",
    "apollo",
    "delta_bar_delta",
    "frequency_adam",
    "frequency_sgd",
    "hypergradient_adam",
    "hypergradient_sgd",
    "layerwise",
    "layerwise_decay",
    "muown",
    "namo_d",
    "nero",
    "neuron_adagrad",
    "neuron_lamb",
    "neuron_lars",
    "neuron_rmsprop",
    "neuron_sgd",
    "normuon",
    "rowwise_adagrad",
    "scale_by_agreement",
    "scale_by_apollo",
    "scale_by_frequency",
    "scale_by_initial_norm",
    "scale_by_layer",
    "scale_by_normuon",
    "scale_by_weight_norm",
    "slim_adam",
    "subset_norm_adam",
    "weight_norm_adam",
]
