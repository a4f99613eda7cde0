"""Adam-mini (Zhang et al. 2024, arXiv:2406.16793, Algorithm 1), one block a row."""

import torch


class AdamMini(torch.optim.Optimizer):
    """Adam whose second moment v is one number for each neuron (row)."""

    def __init__(self, params, lr, b1=0.9, b2=0.999, eps=1e-8, *, weight_decay=0.0,
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
                s["v"] = s.get("v", p.new_zeros(len(p)))
                for n in range(len(p)):
                    s["v"][n] = b2 * s["v"][n] + (1 - b2) * (p.grad[n] ** 2).mean()
                    v_hat = s["v"][n] / (1 - b2**t)
                    r.append(1 / (v_hat.sqrt() + group["eps"]))
                if group["redistribute"]:
                    mean = sum(r) / len(r)
                    r = [r_n / mean for r_n in r]
                if group["low"] is not None:
                    r = [r_n.clamp(min=group["low"]) for r_n in r]
                if group["high"] is not None:
                    r = [r_n.clamp(max=group["high"]) for r_n in r]
                for n in range(len(p)):
                    p[n] -= lr * (r[n] * s["m"][n] / (1 - b1**t) + wd * p[n])
                s["rate"] = torch.stack(r)
