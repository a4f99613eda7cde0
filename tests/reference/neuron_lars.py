"""LARS (You et al. 2017, arXiv:1708.03888), one trust ratio a row."""

import torch


def shape(r, values, group):  # redistribute, then bound
    low, high = group["low"], group["high"]
    if group["redistribute"] and (values != 0).any():
        r = r / r[values != 0].mean()
    return r if low is None and high is None else r.clamp(low, high)


class NeuronLARS(torch.optim.Optimizer):
    """Momentum SGD, each neuron's (row's) lr times its own trust ratio."""

    def __init__(self, params, lr, trust_coefficient=0.001, eps=0.0, momentum=0.9, *,
                 nesterov=False, weight_decay=0.0,
                 low=None, high=None, redistribute=False):  # fmt: skip
        super().__init__(params, dict(
            lr=lr, trust_coefficient=trust_coefficient, eps=eps, momentum=momentum,
            nesterov=nesterov, weight_decay=weight_decay,
            low=low, high=high, redistribute=redistribute))  # fmt: skip

    @torch.no_grad()
    def step(self):
        for group in self.param_groups:
            lr, mu, c = (group[k] for k in ("lr", "momentum", "trust_coefficient"))
            for p in group["params"]:
                s, r = self.state[p], []
                u = p.grad + group["weight_decay"] * p
                for n in range(len(p)):
                    w_n, u_n = p[n].norm(), u[n].norm()
                    trusted = w_n > 0 and u_n > 0
                    ratio = c * w_n / (u_n + group["eps"])
                    r.append(ratio if trusted else torch.ones_like(ratio))
                r = torch.stack(r)
                s["rate"] = r = shape(r, r, group)
                d = torch.stack([lr * r[n] * u[n] for n in range(len(p))])
                s["B"] = mu * s.get("B", 0) + d
                p -= d + mu * s["B"] if group["nesterov"] else s["B"]
