"""NAMO-D: Muon whose columns are scaled by an adaptive diagonal (with AdamW)."""

import torch


def newton_schulz(u):
    x = (u.flatten(1) if len(u) <= u[0].numel() else u.flatten(1).T) / (u.norm() + 1e-7)
    for _ in range(5):
        x = 3.4445 * x + (-4.7750 * (a := x @ x.T) + 2.0315 * (a @ a)) @ x
    return (x if len(x) == len(u) else x.T).reshape_as(u)


class NamoD(torch.optim.Optimizer):
    """Muon, column j scaled by ||U_:j|| / sqrt(V_j); AdamW for biases."""

    def __init__(self, params, lr, b1=0.95, b2=0.99, eps=1e-8, clamp=0.75, *,
                 nesterov=True, adam_learning_rate=None, adam_b1=0.9, adam_b2=0.95,
                 adam_eps=1e-8, weight_decay=0.0):  # fmt: skip
        torch.optim.Optimizer.__init__(self, params, dict([*locals().items()][2:]))

    @torch.no_grad()
    def step(self):
        for o, p in ((o_, p_) for o_ in self.param_groups for p_ in o_["params"]):
            s, g, lr, b1, b2 = self.state[p], p.grad, o["lr"], o["b1"], o["b2"]
            wd, s["t"] = o["weight_decay"], (t := s.get("t", 0) + 1)
            if p.dim() == 1:
                rate, b1, b2 = o["adam_learning_rate"], o["adam_b1"], o["adam_b2"]
                s["m"] = m = b1 * s.get("m", 0) + (1 - b1) * g
                s["v"] = v = b2 * s.get("v", 0) + (1 - b2) * g**2
                d = m / (1 - b1**t) / ((v / (1 - b2**t)).sqrt() + o["adam_eps"])
                p -= (lr if rate is None else rate) * (d + wd * p)
                continue
            s["M"] = m = b1 * s.get("M", 0) + (1 - b1) * g
            u = (1 - b1) * g + b1 * m if o["nesterov"] else m
            s["V"] = b2 * s.get("V", 0) + (1 - b2) * (g.flatten(1) ** 2).sum(dim=0)
            c = u.flatten(1).norm(dim=0) / (s["V"].sqrt() + o["eps"])
            s["c"] = c.clamp(o["clamp"] * c.mean(), c.mean() / o["clamp"])
            ca = (s["c"] * lr * (1 - b2**t) ** 0.5 / (1 - b1**t)).reshape_as(p[0])
            p *= 1 - wd * ca.clamp(max=1)
            p -= (0.2 * max(len(p), len(c)) ** 0.5 * ca).clamp(max=1) * newton_schulz(u)
