"""Hypergradient Adam (Baydin et al. 2018, arXiv:1703.04782) a row, by cosines."""

import torch


def shape(r, values, group):  # redistribute, then bound
    low, high = group["low"], group["high"]
    if group["redistribute"] and (values != 0).any():
        r = r / r[values != 0].mean()
    return r if low is None and high is None else r.clamp(low, high)


class HypergradientAdam(torch.optim.Optimizer):
    """AdamW, each neuron's (row's) lr times a factor its successive steps adapt."""

    def __init__(self, params, lr, gain=0.05, b1=0.9, b2=0.999, eps=1e-8, *,
        weight_decay=0.0, low=0.01, high=100.0, redistribute=False):  # fmt: skip
        super().__init__(params, dict(lr=lr, gain=gain, b1=b1, b2=b2, eps=eps, low=low,
        high=high, weight_decay=weight_decay, redistribute=redistribute))  # fmt: skip

    @torch.no_grad()
    def step(self):
        for group in self.param_groups:
            lr, b1, b2, eps = (group[k] for k in ("lr", "b1", "b2", "eps"))
            for p in group["params"]:
                s, g, wd = self.state[p], p.grad, group["weight_decay"]
                s["t"] = t = s.get("t", 0) + 1
                s["a"] = a = s.get("a", p.new_ones(len(p)))
                for n in range(len(p)):
                    d = s["D"][n] if t > 1 else torch.zeros_like(g[n])
                    norms = g[n].norm() * d.norm()
                    s_n = (g[n] * d).sum() / norms if norms > 0 else 0
                    a[n] *= 1 + group["gain"] * s_n
                s["a"] = a = shape(a, a, dict(group, redistribute=False))
                s["m"] = b1 * s.get("m", 0) + (1 - b1) * g
                s["v"] = b2 * s.get("v", 0) + (1 - b2) * g**2
                s["D"] = s["m"] / (1 - b1**t) / ((s["v"] / (1 - b2**t)).sqrt() + eps)
                s["rate"] = r = shape(a.clone(), a, group)
                for n in range(len(p)):
                    p[n] -= lr * (r[n] * s["D"][n] + wd * p[n])
