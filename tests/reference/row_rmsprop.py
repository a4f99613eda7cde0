"""Row-wise RMSprop of an embedding table (Tieleman & Hinton 2012), v one number a row.

A row changes only in a step whose batch names it; its gradient is the sum over the
places that do (`p.grad`: sparse, not coalesced). "lazy": its v did not decay in the
steps between. "catch_up": it did, once for each, made good when it is next touched.
"""

import torch


class RowRMSprop(torch.optim.Optimizer):
    """RMSprop with one second moment a row, in the rows of the batch and no other."""

    def __init__(self, params, lr, decay=0.9, eps=1e-8, *, weight_decay=0.0,
                 untouched="lazy"):  # fmt: skip
        super().__init__(params, dict(
            lr=lr, decay=decay, eps=eps, weight_decay=weight_decay,
            untouched=untouched))  # fmt: skip

    @torch.no_grad()
    def step(self):
        for group in self.param_groups:
            lr, b, wd = group["lr"], group["decay"], group["weight_decay"]
            for p in group["params"]:
                s, ids, places = self.state[p], p.grad._indices()[0], p.grad._values()
                if not s:
                    s.update(t=0, v=p.new_zeros(len(p)), last=[0] * len(p))
                s["t"] += 1
                for i in sorted(set(ids.tolist())):
                    g = places[ids == i].sum(0)
                    missed = s["t"] - 1 - s["last"][i]  # steps since, not counting both
                    s["last"][i] = s["t"]
                    if group["untouched"] == "catch_up":
                        for _ in range(missed):
                            s["v"][i] *= b
                    s["v"][i] = b * s["v"][i] + (1 - b) * (g**2).mean()
                    p[i] -= lr * (g / (s["v"][i].sqrt() + group["eps"]) + wd * p[i])
