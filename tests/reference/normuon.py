"""NorMuon (Li et al. 2025, arXiv:2510.05491): Muon, normalized row by row."""

import torch


def newton_schulz(u):
    x = (u.flatten(1) if len(u) <= u[0].numel() else u.flatten(1).T) / (u.norm() + 1e-7)
    for _ in range(5):
        x = 3.4445 * x + (-4.7750 * (a := x @ x.T) + 2.0315 * (a @ a)) @ x
    return x if len(x) == len(u) else x.T


class NorMuon(torch.optim.Optimizer):
    """Muon, each row of the update divided by its running rms; AdamW for biases."""

    def __init__(self, params, lr, b1=0.95, b2=0.95, eps=1e-10, *, nesterov=True,
                adam_learning_rate=3e-4, adam_b1=0.9, adam_b2=0.95, adam_eps=1e-10,
                weight_decay=0.0, low=None, high=None, redistribute=False):  # fmt: skip
        torch.optim.Optimizer.__init__(self, params, dict([*locals().items()][2:]))

    @torch.no_grad()
    def step(self):
        for o, p in ((o_, p_) for o_ in self.param_groups for p_ in o_["params"]):
            s, g, lr, b1, b2 = self.state[p], p.grad, o["lr"], o["b1"], o["b2"]
            wd, high, s["t"] = o["weight_decay"], o["high"], (t := s.get("t", 0) + 1)
            if p.dim() == 1:
                lr, b1, b2 = o["adam_learning_rate"], o["adam_b1"], o["adam_b2"]
                s["m"] = m = b1 * s.get("m", 0) + (1 - b1) * g
                s["v"] = v = b2 * s.get("v", 0) + (1 - b2) * g**2
                q = m / (1 - b1**t) / ((v / (1 - b2**t)).sqrt() + o["adam_eps"])
            else:
                s["M"] = m = b1 * s.get("M", 0) + (1 - b1) * g
                x = newton_schulz((1 - b1) * g + b1 * m if o["nesterov"] else m)
                s["v"] = v = b2 * s.get("v", 0) + (1 - b2) * (x**2).mean(dim=1)
                r = 1 / (v.sqrt() + o["eps"])
                r /= r[v != 0].mean() if o["redistribute"] and v.any() else 1
                s["rate"] = r = r.clamp(o["low"], torch.inf if high is None else high)
                q = torch.stack([r_n * x_n for r_n, x_n in zip(r, x, strict=True)])
                q *= x.norm() / (q.norm() + 1e-10) * max(1, len(x) / len(x.T)) ** 0.5
            p -= (o["lr"] if lr is None else lr) * (q.reshape_as(p) + wd * p)
