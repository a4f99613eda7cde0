"""SlimAdam (Kalra et al. 2025, arXiv:2503.01843), v averaged over each row."""

import torch


def shape(r, values, group):  # redistribute, then bound
    low, high = group["low"], group["high"]
    if group["redistribute"] and (values != 0).any():
        r = r / r[values != 0].mean()
    return r if low is None and high is None else r.clamp(low, high)


class SlimAdam(torch.optim.Optimizer):
    """Adam, v a mean over each neuron (row); only the kernel decays."""

    def __init__(self, params, lr, b1=0.9, b2=0.999, eps=1e-8, *, weight_decay=0.0,
                 low=None, high=None, redistribute=False):  # fmt: skip
        super().__init__(params, dict(
            lr=lr, b1=b1, b2=b2, eps=eps,
            weight_decay=weight_decay, low=low, high=high, redistribute=redistribute,
        ))  # fmt: skip

    @torch.no_grad()
    def step(self):
        for group in self.param_groups:
            lr, b1, b2, eps = (group[k] for k in ("lr", "b1", "b2", "eps"))
            for i, p in enumerate(group["params"]):
                s, wd = self.state[p], group["weight_decay"] if i == 0 else 0.0
                s["t"] = t = s.get("t", 0) + 1
                s["m"] = b1 * s.get("m", 0) + (1 - b1) * p.grad
                s["v"] = s.get("v", p.new_zeros(len(p)))
                for n in range(len(p)):
                    s["v"][n] = b2 * s["v"][n] + (1 - b2) * (p.grad[n] ** 2).mean()
                r = [1 / ((v_n / (1 - b2**t)).sqrt() + eps) for v_n in s["v"]]
                s["rate"] = r = shape(torch.stack(r), s["v"], group)
                for n in range(len(p)):
                    p[n] -= lr * (r[n] * s["m"][n] / (1 - b1**t) + wd * p[n])
