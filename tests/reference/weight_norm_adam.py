"""Adam (Kingma & Ba 2015, Algorithm 1), row n's lr times 1 + scaling_factor*||w_n||."""

import torch


class WeightNormAdam(torch.optim.Optimizer):
    """Adam, each neuron's lr scaled by the norm of its pre-step weights."""

    def __init__(self, params, lr, scaling_factor=0.01, b1=0.9, b2=0.999, eps=1e-8,
                 norm="l2", share_bias=True, *, weight_decay=0.0,
                 low=None, high=None, redistribute=False):  # fmt: skip
        super().__init__(params, dict(
            lr=lr, scaling_factor=scaling_factor, b1=b1, b2=b2, eps=eps, norm=norm,
            share_bias=share_bias, weight_decay=weight_decay, low=low, high=high,
            redistribute=redistribute))  # fmt: skip

    @torch.no_grad()
    def step(self):
        for group in self.param_groups:
            lr, b1, b2, wd = (group[k] for k in ("lr", "b1", "b2", "weight_decay"))
            total = {"l2": torch.sum, "rms": torch.mean}[group["norm"]]
            for i, p in enumerate(group["params"]):
                s = self.state[p]
                s["t"] = t = s.get("t", 0) + 1
                s["m"] = b1 * s.get("m", 0) + (1 - b1) * p.grad
                s["v"] = b2 * s.get("v", 0) + (1 - b2) * p.grad**2
                m_hat, v_hat = s["m"] / (1 - b1**t), s["v"] / (1 - b2**t)
                u = m_hat / (v_hat.sqrt() + group["eps"])
                if i == 0 or not group["share_bias"]:  # else the weight's rates
                    norms = [total(p[n] ** 2).sqrt() for n in range(len(p))]
                    r = [1 + group["scaling_factor"] * s_n for s_n in norms]
                    if group["redistribute"]:
                        r = [r_n / (sum(r) / len(r)) for r_n in r]
                    if group["low"] is not None:
                        r = [r_n.clamp(min=group["low"]) for r_n in r]
                    if group["high"] is not None:
                        r = [r_n.clamp(max=group["high"]) for r_n in r]
                for n in range(len(p)):
                    p[n] -= lr * (r[n] * u[n] + wd * p[n])
                s["rate"] = torch.stack(r)
