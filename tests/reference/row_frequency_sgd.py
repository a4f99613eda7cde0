"""SGD on a table, a row's lr times (how often it occurs)^-exponent, at most `high`.

No paper: f = n / t, w <- w - lr (min(f^-exponent, high) g + weight_decay w).
A row changes only in a step whose batch names it; its gradient is the sum over the
places that do (`p.grad`: sparse, not coalesced). n counts the steps in which it is not
all zero.
"""

import torch


class RowFrequencySGD(torch.optim.Optimizer):
    """SGD whose rows step the further the more rarely they have a gradient."""

    def __init__(self, params, lr, exponent=0.5, *, weight_decay=0.0, high=100.0):
        super().__init__(params, dict(
            lr=lr, exponent=exponent, weight_decay=weight_decay, high=high
        ))  # fmt: skip

    @torch.no_grad()
    def step(self):
        for group in self.param_groups:
            lr, wd, high = group["lr"], group["weight_decay"], group["high"]
            for p in group["params"]:
                s, ids, places = self.state[p], p.grad._indices()[0], p.grad._values()
                if not s:
                    s.update(t=0, n=p.new_zeros(len(p)))
                s["t"] += 1
                for i in sorted(set(ids.tolist())):
                    g = places[ids == i].sum(0)
                    rate = 0.0  # of a row that never had a gradient
                    if (g != 0).any():
                        s["n"][i] += 1
                    if s["n"][i] > 0:
                        rate = (s["n"][i].item() / s["t"]) ** -group["exponent"]
                    if high is not None:
                        rate = min(rate, high)
                    p[i] -= lr * (rate * g + wd * p[i])
