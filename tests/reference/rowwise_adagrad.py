"""Row-wise Adagrad (Duchi et al. 2011; DLRM's embeddings), one accumulator a row."""

import torch


def shape(r, values, group):  # redistribute, then bound
    low, high = group["low"], group["high"]
    if group["redistribute"] and (values != 0).any():
        r = r / r[values != 0].mean()
    return r if low is None and high is None else r.clamp(low, high)


class RowwiseAdagrad(torch.optim.Optimizer):
    """Adagrad whose accumulator is one mean square for each neuron (row)."""

    def __init__(self, params, lr, initial_accumulator_value=0.0, eps=1e-10, *,
                 weight_decay=0.0, decay="decoupled", lazy=True,
                 low=None, high=None, redistribute=False):  # fmt: skip
        super().__init__(params, dict(
            lr=lr, initial_accumulator_value=initial_accumulator_value, eps=eps,
            weight_decay=weight_decay, decay=decay, lazy=lazy,
            low=low, high=high, redistribute=redistribute))  # fmt: skip

    @torch.no_grad()
    def step(self):
        for group in self.param_groups:
            lr, eps, l2 = group["lr"], group["eps"], group["decay"] == "l2"
            for p in group["params"]:
                s, g, wd = self.state[p], p.grad.clone(), [0.0] * len(p)
                start = p.new_full((len(p),), group["initial_accumulator_value"])
                s["acc"] = s.get("acc", start)
                for n in range(len(p)):
                    if (p.grad[n] != 0).any() or not group["lazy"]:
                        wd[n] = group["weight_decay"]
                    g[n] += wd[n] * p[n] if l2 else 0
                    s["acc"][n] += (g[n] ** 2).mean()
                r = torch.stack([1 / (acc_n.sqrt() + eps) for acc_n in s["acc"]])
                s["rate"] = r = shape(r, s["acc"], group)
                for n in range(len(p)):
                    p[n] -= lr * (r[n] * g[n] + (0 if l2 else wd[n]) * p[n])
