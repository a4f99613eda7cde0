"""Delta-bar-delta (Jacobs 1988, Neural Networks 1:295-307), one gain a row."""

import torch


def shape(r, values, group):  # redistribute, then bound
    low, high = group["low"], group["high"]
    if group["redistribute"] and (values != 0).any():
        r = r / r[values != 0].mean()
    return r if low is None and high is None else r.clamp(low, high)


class DeltaBarDelta(torch.optim.Optimizer):
    """SGD, each neuron's (row's) gain grown additively and cut geometrically."""

    def __init__(self, params, lr, increase=0.05, decrease=0.1, smoothing=0.7, *,
        weight_decay=0.0, low=0.01, high=100.0, redistribute=False):  # fmt: skip
        super().__init__(params, dict(
            lr=lr, increase=increase, decrease=decrease, smoothing=smoothing,
            weight_decay=weight_decay, low=low, high=high,
            redistribute=redistribute))  # fmt: skip

    @torch.no_grad()
    def step(self):
        for group in self.param_groups:
            lr, wd, b = (group[k] for k in ("lr", "weight_decay", "smoothing"))
            for p in group["params"]:
                s, g = self.state[p], p.grad
                s["a"] = a = s.get("a", p.new_ones(len(p)))
                s["G"] = s.get("G", torch.zeros_like(p))
                for n in range(len(p)):
                    agreement = (g[n] * s["G"][n]).sum()
                    a[n] += group["increase"] if agreement > 0 else 0
                    a[n] *= 1 - group["decrease"] if agreement < 0 else 1
                s["a"] = a = shape(a, a, dict(group, redistribute=False))
                s["G"] = b * s["G"] + (1 - b) * g
                s["rate"] = r = shape(a.clone(), a, group)
                for n in range(len(p)):
                    p[n] -= lr * (r[n] * g[n] + wd * p[n])
