"""Adam (Kingma and Ba 2014), row n's lr times (its frequency)^-exponent."""

import torch


def shape(r, values, group):  # redistribute, then bound
    low, high = group["low"], group["high"]
    if group["redistribute"] and (values != 0).any():
        r = r / r[values != 0].mean()
    return r if low is None and high is None else r.clamp(low, high)


class FrequencyAdam(torch.optim.Optimizer):
    """AdamW, each neuron's (row's) lr raised the more rarely it has a gradient."""

    def __init__(self, params, lr, exponent=0.5, b1=0.9, b2=0.999, eps=1e-8, *,
                 decay=None, weight_decay=0.0,
                 low=None, high=100.0, redistribute=False):  # fmt: skip
        super().__init__(params, dict(lr=lr, exponent=exponent, b1=b1, b2=b2,
            eps=eps, decay=decay, weight_decay=weight_decay, low=low, high=high,
            redistribute=redistribute))  # fmt: skip

    @torch.no_grad()
    def step(self):
        for group in self.param_groups:
            b1, b2, eps, decay = (group[k] for k in ("b1", "b2", "eps", "decay"))
            keep, gain = (1, 1) if decay is None else (decay, 1 - decay)
            for p in group["params"]:
                s = self.state[p]
                s["m"] = b1 * s.get("m", 0) + (1 - b1) * p.grad
                s["v"] = b2 * s.get("v", 0) + (1 - b2) * p.grad**2
                s["t"] = t = s.get("t", 0) + 1
                active = torch.stack([(p.grad[n] != 0).any() for n in range(len(p))])
                s["c"] = keep * s.get("c", 0) + gain * active.to(p.dtype)
                f = s["c"] / (t if decay is None else 1 - decay**t)
                r = [f_n ** -group["exponent"] if f_n > 0 else 0 * f_n for f_n in f]
                s["rate"] = r = shape(torch.stack(r), f, group)
                d = s["m"] / (1 - b1**t) / ((s["v"] / (1 - b2**t)).sqrt() + eps)
                for n in range(len(p)):
                    p[n] -= group["lr"] * (r[n] * d[n] + group["weight_decay"] * p[n])
