"""SNSM's AdamWSN (Nguyen and Nguyen 2024, arXiv:2411.07120), one subset a row."""

import torch


def shape(r, values, group):  # redistribute, then bound
    low, high = group["low"], group["high"]
    if group["redistribute"] and (values != 0).any():
        r = r / r[values != 0].mean()
    return r if low is None and high is None else r.clamp(low, high)


class SubsetNormAdam(torch.optim.Optimizer):
    """Adam whose v is the squared norm of each neuron's (row's) gradient."""

    def __init__(self, params, lr, b1=0.9, b2=0.999, eps=1e-6, *, weight_decay=0.0,
                 low=None, high=None, redistribute=False):  # fmt: skip
        super().__init__(params, dict(
            lr=lr, b1=b1, b2=b2, eps=eps,
            weight_decay=weight_decay, low=low, high=high, redistribute=redistribute,
        ))  # fmt: skip

    @torch.no_grad()
    def step(self):
        for group in self.param_groups:
            lr, b1, b2, eps = (group[k] for k in ("lr", "b1", "b2", "eps"))
            for p in group["params"]:
                s = self.state[p]
                s["t"] = t = s.get("t", 0) + 1
                s["m"] = b1 * s.get("m", 0) + (1 - b1) * p.grad
                s["v"] = s.get("v", p.new_zeros(len(p)))
                for n in range(len(p)):
                    s["v"][n] = b2 * s["v"][n] + (1 - b2) * (p.grad[n] ** 2).sum()
                r = [1 / (v_n.sqrt() + eps) for v_n in s["v"]]
                s["rate"] = r = shape(torch.stack(r), s["v"], group)
                for n in range(len(p)):
                    p[n] -= lr * (1 - b2**t) ** 0.5 / (1 - b1**t) * r[n] * s["m"][n]
                    p[n] -= lr * group["weight_decay"] * p[n]  # of the updated row
