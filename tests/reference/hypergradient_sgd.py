"""Hypergradient descent (Baydin et al. 2018, arXiv:1703.04782) a row, by cosines."""

import torch


def shape(r, values, group):  # redistribute, then bound
    low, high = group["low"], group["high"]
    if group["redistribute"] and (values != 0).any():
        r = r / r[values != 0].mean()
    return r if low is None and high is None else r.clamp(low, high)


class HypergradientSGD(torch.optim.Optimizer):
    """SGD, each neuron's (row's) lr times a factor its successive steps adapt."""

    def __init__(self, params, lr, gain=0.05, momentum=0.0, *, weight_decay=0.0,
                 low=0.01, high=100.0, redistribute=False):  # fmt: skip
        super().__init__(params, dict(
            lr=lr, gain=gain, momentum=momentum, weight_decay=weight_decay,
            low=low, high=high, redistribute=redistribute))  # fmt: skip

    @torch.no_grad()
    def step(self):
        for group in self.param_groups:
            lr, wd, gain = (group[k] for k in ("lr", "weight_decay", "gain"))
            for p in group["params"]:
                s, g = self.state[p], p.grad
                s["a"] = a = s.get("a", p.new_ones(len(p)))
                s["D"] = s.get("D", torch.zeros_like(p))
                for n in range(len(p)):
                    norms = g[n].norm() * s["D"][n].norm()
                    cosine = (g[n] * s["D"][n]).sum() / norms if norms > 0 else 0
                    a[n] *= 1 + gain * cosine
                s["a"] = a = shape(a, a, dict(group, redistribute=False))
                s["D"] = group["momentum"] * s["D"] + g  # the buffer is the direction
                s["rate"] = r = shape(a.clone(), a, group)
                for n in range(len(p)):
                    p[n] -= lr * (r[n] * s["D"][n] + wd * p[n])
