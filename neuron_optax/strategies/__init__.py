r"""Named strategies: a name, defaults and one composition each.

In their formulas :math:`g` is the gradient, :math:`w` the weights before the step,
:math:`\eta` the learning rate and :math:`\lambda` the weight decay, which is decoupled:
it enters no statistic.

Under ``optax.inject_hyperparams``, name a function given as ``weight_decay_mask`` in
``static_args``, or it is taken for a schedule. With bfloat16 params hyperparameters
become bfloat16, where 0.999 is 1: give ``hyperparam_dtype=jnp.float32``.
"""

from neuron_optax.strategies.gradients import adam_mini, neuron_adagrad, neuron_rmsprop
from neuron_optax.strategies.layers import layerwise, layerwise_decay, scale_by_layer
from neuron_optax.strategies.weights import scale_by_weight_norm, weight_norm_adam

__all__ = [
    "adam_mini",
    "layerwise",
    "layerwise_decay",
    "neuron_adagrad",
    "neuron_rmsprop",
    "scale_by_layer",
    "scale_by_weight_norm",
    "weight_norm_adam",
]
