"""Adam (Kingma & Ba 2015, Algorithm 1) with its own lr for each layer (param group)."""

import torch


class Layerwise(torch.optim.Optimizer):
    """Adam, each param group with its own lr, which also scales its decay."""

    def __init__(self, params, lr, b1=0.9, b2=0.999, eps=1e-8, *, weight_decay=0.0):
        defaults = dict(lr=lr, b1=b1, b2=b2, eps=eps, weight_decay=weight_decay)
        super().__init__(params, defaults)

    @torch.no_grad()
    def step(self):
        for group in self.param_groups:
            b1, b2 = group["b1"], group["b2"]
            for p in group["params"]:
                s = self.state[p]
                s["t"] = t = s.get("t", 0) + 1
                s["m"] = b1 * s.get("m", 0) + (1 - b1) * p.grad
                s["v"] = b2 * s.get("v", 0) + (1 - b2) * p.grad**2
                m_hat = s["m"] / (1 - b1**t)
                v_hat = s["v"] / (1 - b2**t)
                u = m_hat / (v_hat.sqrt() + group["eps"])
                p -= group["lr"] * (u + group["weight_decay"] * p)
