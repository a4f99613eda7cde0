"""LAMB (You et al. 2019, arXiv:1904.00962, Algorithm 2), one trust ratio a row."""

import torch


def shape(r, values, group):  # redistribute, then bound
    low, high = group["low"], group["high"]
    if group["redistribute"] and (values != 0).any():
        r = r / r[values != 0].mean()
    return r if low is None and high is None else r.clamp(low, high)


class NeuronLAMB(torch.optim.Optimizer):
    """AdamW, each neuron's (row's) update times its own trust ratio."""

    def __init__(self, params, lr, b1=0.9, b2=0.999, eps=1e-6, *, weight_decay=0.0,
                 low=None, high=None, redistribute=False):  # fmt: skip
        super().__init__(params, dict(
            lr=lr, b1=b1, b2=b2, eps=eps,
            weight_decay=weight_decay, low=low, high=high, redistribute=redistribute,
        ))  # fmt: skip

    @torch.no_grad()
    def step(self):
        for group in self.param_groups:
            lr, b1, b2, wd = (group[k] for k in ("lr", "b1", "b2", "weight_decay"))
            for p in group["params"]:
                s, r = self.state[p], []
                s["t"] = t = s.get("t", 0) + 1
                s["m"] = b1 * s.get("m", 0) + (1 - b1) * p.grad
                s["v"] = b2 * s.get("v", 0) + (1 - b2) * p.grad**2
                u = s["m"] / (1 - b1**t)
                u = u / ((s["v"] / (1 - b2**t)).sqrt() + group["eps"]) + wd * p
                for n in range(len(p)):
                    w_n, u_n = p[n].norm(), u[n].norm()
                    r.append(w_n / u_n if w_n > 0 and u_n > 0 else torch.ones_like(w_n))
                r = torch.stack(r)
                s["rate"] = r = shape(r, r, group)
                for n in range(len(p)):
                    p[n] -= lr * r[n] * u[n]
