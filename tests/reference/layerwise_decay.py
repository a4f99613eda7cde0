"""Discriminative fine-tuning (Howard & Ruder 2018) with Adam; groups bottom to top."""

import torch


class LayerwiseDecay(torch.optim.Optimizer):
    """Adam, each param group's lr is the one of the group above it times decay."""

    def __init__(
        self, params, lr, decay, b1=0.9, b2=0.999, eps=1e-8, *, weight_decay=0.0
    ):
        hyper = dict(lr=lr, decay=decay, b1=b1, b2=b2, eps=eps)
        super().__init__(params, dict(hyper, weight_decay=weight_decay))

    @torch.no_grad()
    def step(self):
        for k, group in enumerate(self.param_groups):
            b1, b2 = group["b1"], group["b2"]
            lr = group["lr"] * group["decay"] ** (len(self.param_groups) - 1 - k)
            for p in group["params"]:
                s = self.state[p]
                s["t"] = t = s.get("t", 0) + 1
                s["m"] = b1 * s.get("m", 0) + (1 - b1) * p.grad
                s["v"] = b2 * s.get("v", 0) + (1 - b2) * p.grad**2
                m_hat = s["m"] / (1 - b1**t)
                v_hat = s["v"] / (1 - b2**t)
                u = m_hat / (v_hat.sqrt() + group["eps"])
                p -= lr * (u + group["weight_decay"] * p)
