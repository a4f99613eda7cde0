"""Muown: Muon on the directions of the rows, Adam on their norms."""

import torch


def newton_schulz(u):
    x = (u if len(u) <= len(u.T) else u.T) / (u.norm() + 1e-7)
    for _ in range(5):
        x = 3.4445 * x + (-4.7750 * (a := x @ x.T) + 2.0315 * (a @ a)) @ x
    return x if len(x) == len(u) else x.T


class Muown(torch.optim.Optimizer):
    """Row w_n = G_n z_n / ||z_n||: Muon moves z and Adam moves G; AdamW for biases."""

    def __init__(self, params, lr, b1=0.95, adam_b1=0.9, adam_b2=0.95, eps=1e-8, *,
                 adam_learning_rate=None, weight_decay=0.0):  # fmt: skip
        torch.optim.Optimizer.__init__(self, params, dict([*locals().items()][2:]))

    @torch.no_grad()
    def step(self):
        for o, p in ((o_, p_) for o_ in self.param_groups for p_ in o_["params"]):
            s, y, lr, a, b = self.state[p], p.grad, o["lr"], o["adam_b1"], o["adam_b2"]
            rate, s["t"] = o["adam_learning_rate"], (t := s.get("t", 0) + 1)
            if p.dim() > 1:  # G, h columns; Adam on y = <g_n, u_n> in "mg", "vg"
                norms = torch.stack([p_n.norm() for p_n in p]).clamp(min=1e-12)
                G, h = (s.get(key, norms)[:, None] for key in ("G", "h"))
                u, g, c = p.flatten(1) / G, p.grad.flatten(1), o["b1"]
                y = torch.stack([g_n @ u_n for g_n, u_n in zip(g, u, strict=True)])
                s["M"] = M = c * s.get("M", 0) + (1 - c) * G / h * (g - y[:, None] * u)
                z = h * u - lr * newton_schulz(M) * max(1, len(u) / len(u.T)) ** 0.5
            s["mg"[: p.dim()]] = m = a * s.get("mg"[: p.dim()], 0) + (1 - a) * y
            s["vg"[: p.dim()]] = v = b * s.get("vg"[: p.dim()], 0) + (1 - b) * y**2
            d = m / (1 - a**t) / ((v / (1 - b**t)).sqrt() + o["eps"])
            if p.dim() > 1:
                s["G"] = (G[:, 0] - lr * d) * (1 - lr * o["weight_decay"])
                s["h"] = torch.stack([z_n.norm() for z_n in z])
                p.copy_(((s["G"] / s["h"])[:, None] * z).reshape_as(p))
            else:
                p -= (lr if rate is None else rate) * (d + o["weight_decay"] * p)
