r"""Named strategies: a name, defaults and one composition each.

In their formulas :math:`g` is the gradient, :math:`w` the weights before the step,
:math:`\eta` the learning rate and :math:`\lambda` the weight decay, which is decoupled
and enters no statistic but those of `neuron_lars`, `neuron_lamb` and the L2 decay of
`rowwise_adagrad`.

`row_adagrad`, `row_rmsprop`, `row_adam_mini` and `row_frequency_sgd` do as
`rowwise_adagrad`, `neuron_rmsprop`, `adam_mini` and `frequency_sgd` for the gradients
of the rows that a batch touches; they keep 4 bytes per row.

Under ``optax.inject_hyperparams``, name a function given as ``weight_decay_mask`` in
``static_args``, or it is taken for a schedule. With bfloat16 params hyperparameters
become bfloat16, where 0.999 is 1: give ``hyperparam_dtype=jnp.float32``.

Bytes are of the state per parameter of a kernel of 1024 x 1024 in float32::

  strategy            statistic        accumulator    rate             direction   bytes
  layerwise           -                -              fixed            any          8.00
  layerwise_decay     -                -              decay**depth     any          8.00
  weight_norm_adam    |w|              latest         1 + s a          Adam         8.01
  neuron_adagrad      mean g**2        total          1/(sqrt a + eps) g            0.01
  rowwise_adagrad     mean g**2        total          1/(sqrt a + eps) g            0.01
  neuron_rmsprop      mean g**2        running mean   1/(sqrt a + eps) g            0.01
  adam_mini           mean g**2        debiased mean  1/(sqrt a + eps) momentum     4.01
  slim_adam           mean g**2        debiased mean  1/(sqrt a + eps) momentum     4.01
  subset_norm_adam    sum g**2         running mean   1/(sqrt a + eps) momentum     4.01
  neuron_sgd          |M|              latest         1/max(a, eps)    momentum M   4.01
  nero                sum g**2         debiased mean  1/sqrt a         g, projected 0.01
  neuron_lars         |w|/|g|          latest         c a              g            4.01
  neuron_lamb         |w|/|u|          latest         a                Adam u       8.01
  frequency_sgd       active           share of steps a**-p            g            0.01
  frequency_adam      active           share of steps a**-p            Adam         8.01
  hypergradient_sgd   cos(g, last d)   gains          a                g            4.01
  hypergradient_adam  cos(g, last d)   gains          a                Adam        12.01
  delta_bar_delta     <g, mean g>      steps, shares  a                g            4.01
  normuon             mean O**2        running mean   1/(sqrt a + eps) Muon O       4.01
  namo_d              sum g**2, input  running mean   |U|/(sqrt a+eps) Muon         4.01
  muown               <g, w/|w|>       Adam           on magnitudes    Muon         4.02
  apollo              |Adam Pg|/|Pg|   latest         a                g            2.00

"None known" says that no package on PyPI offers it as its authors have it; the oracle
is from the equations alone::

  strategy            source                         agrees with, beside its oracle
  layerwise           -                              -
  layerwise_decay     ULMFiT, arXiv:1801.06146       -
  weight_norm_adam    -                              -
  neuron_adagrad      AdaGrad (2011)                 FBGEMM, torch.optim.Adagrad
  rowwise_adagrad     DLRM, arXiv:1906.00091         FBGEMM, torchrec
  neuron_rmsprop      RMSprop (2012)                 torch.optim.RMSprop
  adam_mini           arXiv:2406.16793               adam-mini, torch.optim.Adam
  slim_adam           arXiv:2503.01843               none known
  subset_norm_adam    SNSM, arXiv:2411.07120         pytorch_optimizer
  neuron_sgd          SCALE, RMNP, Scion             pytorch_optimizer (Scion)
  nero                arXiv:2102.07227               pytorch_optimizer
  neuron_lars         LARS, arXiv:1708.03888         optax.lars, per layer
  neuron_lamb         LAMB, arXiv:1904.00962         optax.lamb, per layer
  frequency_sgd       -                              -
  frequency_adam      -                              -
  hypergradient_sgd   arXiv:1703.04782               -
  hypergradient_adam  arXiv:1703.04782               -
  delta_bar_delta     Jacobs (1988)                  -
  normuon             arXiv:2510.05491               pytorch_optimizer
  namo_d              github.com/minxin-zhg/namo     none known
  muown               arXiv:2605.10797               none known
  apollo              arXiv:2412.05270               apollo-torch
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
from neuron_optax.strategies.lowrank import ApolloState, apollo, scale_by_apollo
from neuron_optax.strategies.magnitudes import MuownState, muown
from neuron_optax.strategies.moments import adam_mini, slim_adam, subset_norm_adam
from neuron_optax.strategies.normalized import (
    nero,
    neuron_sgd,
    scale_by_initial_norm,
)
from neuron_optax.strategies.orthogonal import normuon, scale_by_normuon
from neuron_optax.strategies.rows import (
    ROWS,
    CatchUpState,
    row_adagrad,
    row_adam_mini,
    row_frequency_sgd,
    row_rmsprop,
    scale_per_row,
)
from neuron_optax.strategies.trust import neuron_lamb, neuron_lars
from neuron_optax.strategies.weights import scale_by_weight_norm, weight_norm_adam

__all__ = [
    "ROWS",
    "ApolloState",
    "CatchUpState",
    "MuownState",
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
    "row_adagrad",
    "row_adam_mini",
    "row_frequency_sgd",
    "row_rmsprop",
    "rowwise_adagrad",
    "scale_by_agreement",
    "scale_by_apollo",
    "scale_by_frequency",
    "scale_by_initial_norm",
    "scale_by_layer",
    "scale_by_normuon",
    "scale_by_weight_norm",
    "scale_per_row",
    "slim_adam",
    "subset_norm_adam",
    "weight_norm_adam",
]
