"""Nero (Liu et al. 2021, arXiv:2102.07227), one neuron a row."""

import torch


class Nero(torch.optim.Optimizer):
    """Normalized SGD for each neuron, its row kept centred and of norm 1."""

    def __init__(self, params, lr, decay=0.999, *,
                 low=None, high=None, redistribute=False):  # fmt: skip
        super().__init__(params, dict(
            lr=lr, decay=decay, low=low, high=high, redistribute=redistribute,
        ))  # fmt: skip

    @torch.no_grad()
    def step(self):
        for group, p in ((o, p_) for o in self.param_groups for p_ in o["params"]):
            s, b, g, r = self.state[p], group["decay"], p.grad, []
            s["t"] = t = s.get("t", 0) + 1
            if t == 1:
                s["v"] = p.new_zeros(len(p))
                s["S"] = torch.stack([p_n.norm() for p_n in p]).mean()
                s["S"] = s["S"] if s["S"] > 0 else p.new_tensor(0.01)
            for n in range(len(p)):
                s["v"][n] = b * s["v"][n] + (1 - b) * (g[n] ** 2).sum()
                v_hat = s["v"][n] / (1 - b**t)
                r.append(1 / v_hat.sqrt() if v_hat > 0 else 0 * v_hat)
            r, live = torch.stack(r), s["v"] != 0
            if group["redistribute"] and live.any():
                r /= r[live].mean()
            if group["low"] is not None:
                r = r.clamp(min=group["low"])
            if group["high"] is not None:
                r = r.clamp(max=group["high"])
            s["rate"] = r
            for n in range(len(p)):
                p[n] -= group["lr"] * s["S"] * r[n] * g[n]
                if p[n].numel() > 1:
                    p[n] -= p[n].mean()
                    p[n] /= p[n].norm() if p[n].norm() > 0 else 1
