"""SGD with each row of the update normalized (LMO over rows, cf. arXiv:2502.07529)."""

import torch


def shape(r, values, group):  # redistribute, then bound
    low, high = group["low"], group["high"]
    if group["redistribute"] and (values != 0).any():
        r = r / r[values != 0].mean()
    return r if low is None and high is None else r.clamp(low, high)


class NeuronSGD(torch.optim.Optimizer):
    """Momentum SGD, each neuron's (row's) update divided by its own size."""

    def __init__(self, params, lr, momentum=0.9, eps=1e-8, *, nesterov=False,
                 norm="rms", shape_factor="none", weight_decay=0.0,
                 low=None, high=None, redistribute=False):  # fmt: skip
        super().__init__(params, dict(
            lr=lr, momentum=momentum, eps=eps, nesterov=nesterov, norm=norm,
            shape_factor=shape_factor, weight_decay=weight_decay,
            low=low, high=high, redistribute=redistribute))  # fmt: skip

    @torch.no_grad()
    def step(self):
        for group in self.param_groups:
            lr, mu, wd = (group[k] for k in ("lr", "momentum", "weight_decay"))
            total = {"l2": torch.sum, "rms": torch.mean}[group["norm"]]
            for p in group["params"]:
                s, m, k = self.state[p], len(p), p[0].numel()
                s["M"] = mu * s.get("M", 0) + p.grad
                u = p.grad + mu * s["M"] if group["nesterov"] else s["M"]
                s["s"] = torch.stack([total(u[n] ** 2).sqrt() for n in range(m)])
                r = [1 / s_n.clamp(min=group["eps"]) for s_n in s["s"]]
                s["rate"] = r = shape(torch.stack(r), s["s"], group)
                f = {"none": 1, "aspect": max(1, m / k) ** 0.5, "fan_in": k**-0.5}
                f = f[group["shape_factor"]] if p.dim() > 1 else 1
                for n in range(m):
                    p[n] -= lr * (f * r[n] * u[n] + wd * p[n])
