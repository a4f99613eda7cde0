"""Adam-mini (arXiv:2406.16793, Algorithm 1) of an embedding table, lazy as SparseAdam.

A row changes only in a step whose batch names it; its gradient is the sum over the
places that do (`p.grad`: sparse, not coalesced). m stands still between; v does too
("lazy") or decays once for each step missed ("catch_up"). t counts every step.
"""

import torch


class RowAdamMini(torch.optim.Optimizer):
    """Adam with one second moment a row, in the rows of the batch and no other."""

    def __init__(self, params, lr, b1=0.9, b2=0.999, eps=1e-8, *, weight_decay=0.0,
                 untouched="lazy"):  # fmt: skip
        super().__init__(params, dict(
            lr=lr, b1=b1, b2=b2, eps=eps, weight_decay=weight_decay,
            untouched=untouched))  # fmt: skip

    @torch.no_grad()
    def step(self):
        for group in self.param_groups:
            lr, b1, b2, wd = (group[k] for k in ("lr", "b1", "b2", "weight_decay"))
            for p in group["params"]:
                s, ids, places = self.state[p], p.grad._indices()[0], p.grad._values()
                if not s:
                    s.update(t=0, m=torch.zeros_like(p), v=p.new_zeros(len(p)))
                    s["last"] = [0] * len(p)
                s["t"] = t = s["t"] + 1
                for i in sorted(set(ids.tolist())):
                    g, missed = places[ids == i].sum(0), t - 1 - s["last"][i]
                    s["last"][i] = t
                    if group["untouched"] == "catch_up":
                        s["v"][i] *= b2**missed
                    s["m"][i] = b1 * s["m"][i] + (1 - b1) * g
                    s["v"][i] = b2 * s["v"][i] + (1 - b2) * (g**2).mean()
                    m_hat, v_hat = s["m"][i] / (1 - b1**t), s["v"][i] / (1 - b2**t)
                    p[i] -= lr * (m_hat / (v_hat.sqrt() + group["eps"]) + wd * p[i])
