"""Heavy-ball SGD (Polyak 1964), row n's lr times (its frequency)^-exponent."""

import torch


def shape(r, values, group):  # redistribute, then bound
    low, high = group["low"], group["high"]
    if group["redistribute"] and (values != 0).any():
        r = r / r[values != 0].mean()
    return r if low is None and high is None else r.clamp(low, high)


class FrequencySGD(torch.optim.Optimizer):
    """SGD, each neuron's (row's) lr raised the more rarely it has a gradient."""

    def __init__(self, params, lr, exponent=0.5, momentum=0.0, *, decay=None,
        weight_decay=0.0, low=None, high=100.0, redistribute=False):  # fmt: skip
        super().__init__(params, dict(
            lr=lr, exponent=exponent, momentum=momentum, decay=decay,
            weight_decay=weight_decay, low=low, high=high,
            redistribute=redistribute))  # fmt: skip

    @torch.no_grad()
    def step(self):
        for group in self.param_groups:
            lr, wd, decay = (group[k] for k in ("lr", "weight_decay", "decay"))
            keep, gain = (1, 1) if decay is None else (decay, 1 - decay)
            for p in group["params"]:
                s = self.state[p]
                s["B"] = group["momentum"] * s.get("B", 0) + p.grad
                s["t"] = t = s.get("t", 0) + 1
                active = torch.stack([(p.grad[n] != 0).any() for n in range(len(p))])
                s["c"] = keep * s.get("c", 0) + gain * active.to(p.dtype)
                f = s["c"] / (t if decay is None else 1 - decay**t)
                r = [f_n ** -group["exponent"] if f_n > 0 else 0 * f_n for f_n in f]
                s["rate"] = r = shape(torch.stack(r), f, group)
                for n in range(len(p)):
                    p[n] -= lr * (r[n] * s["B"][n] + wd * p[n])
