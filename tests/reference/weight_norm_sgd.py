"""Heavy-ball SGD (Polyak 1964), row n's lr times 1 + scaling_factor * ||w_n||."""

import torch


class WeightNormSGD(torch.optim.Optimizer):
    """SGD, each neuron's lr scaled by the norm of its pre-step weights."""

    def __init__(self, params, lr, scaling_factor=0.01, momentum=0.0, norm="l2",
                 share_bias=True, *, weight_decay=0.0,
                 low=None, high=None, redistribute=False):  # fmt: skip
        super().__init__(params, dict(
            lr=lr, scaling_factor=scaling_factor, momentum=momentum, norm=norm,
            share_bias=share_bias, weight_decay=weight_decay, low=low, high=high,
            redistribute=redistribute))  # fmt: skip

    @torch.no_grad()
    def step(self):
        for group in self.param_groups:
            lr, wd = group["lr"], group["weight_decay"]
            total = {"l2": torch.sum, "rms": torch.mean}[group["norm"]]
            for i, p in enumerate(group["params"]):
                s = self.state[p]
                s["buf"] = group["momentum"] * s.get("buf", 0) + p.grad
                if i == 0 or not group["share_bias"]:  # else the weight's rates
                    norms = [total(p[n] ** 2).sqrt() for n in range(len(p))]
                    r = [1 + group["scaling_factor"] * s_n for s_n in norms]
                    if group["redistribute"]:
                        mean = sum(r) / len(r)
                        r = [r_n / mean for r_n in r]
                    if group["low"] is not None:
                        r = [r_n.clamp(min=group["low"]) for r_n in r]
                    if group["high"] is not None:
                        r = [r_n.clamp(max=group["high"]) for r_n in r]
                for n in range(len(p)):
                    p[n] -= lr * (r[n] * s["buf"][n] + wd * p[n])
                s["rate"] = torch.stack(r)
