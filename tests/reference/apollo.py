"""APOLLO (Zhu et al. 2024, arXiv:2412.05270): channel scales from a projected Adam."""

import torch


class Apollo(torch.optim.Optimizer):
    """SGD, each channel scaled as Adam scales it in a low-rank projection."""

    def __init__(self, params, lr, b1=0.9, b2=0.999, eps=1e-6, *, projections,
                 scale=1.0, per_tensor=False, weight_decay=0.0):  # fmt: skip
        super().__init__(params, dict(
            lr=lr, b1=b1, b2=b2, eps=eps, projections=projections, scale=scale,
            per_tensor=per_tensor, weight_decay=weight_decay))  # fmt: skip

    @torch.no_grad()
    def step(self):
        for o, p in ((o_, p_) for o_ in self.param_groups for p_ in o_["params"]):
            s, lr, b1, b2 = self.state[p], o["lr"], o["b1"], o["b2"]
            s["t"] = t = s.get("t", 0) + 1
            R = p.grad
            if p.dim() > 1:  # transpose if m < k, so that channels are the rows
                wide = len(p) < p[0].numel()
                P = o["projections"](p, t)
                g = p.grad.flatten(1)
                R = P @ g if wide else g @ P
            s["m"] = b1 * s.get("m", 0) + (1 - b1) * R
            s["v"] = b2 * s.get("v", 0) + (1 - b2) * R**2
            N = s["m"] / (s["v"].sqrt() + o["eps"])
            if p.dim() > 1:
                N, R, g = (N.T, R.T, g.T) if wide else (N, R, g)
                pairs = [(N, R)] if o["per_tensor"] else zip(N, R, strict=True)
                s["s"] = torch.stack([a.norm() / (b.norm() + 1e-8) for a, b in pairs])
                u = s["s"][:, None] * g
                if t > 1:
                    u /= max(u.norm() / (s["prev"] + 1e-8), 1.01) / 1.01
                s["prev"] = u.norm()
                N = o["scale"] ** 0.5 * (u.T if wide else u).reshape_as(p)
            p -= lr * (1 - b2**t) ** 0.5 / (1 - b1**t) * N
            p -= lr * o["weight_decay"] * p
