"""Adagrad (Duchi et al. 2011); each row has one acc, the mean of its g**2 (DLRM)."""

import torch


class NeuronAdagrad(torch.optim.Optimizer):
    """Adagrad whose accumulator is one number for each neuron (row)."""

    def __init__(self, params, lr, initial_accumulator_value=0.0, eps=1e-8,
                 *, weight_decay=0.0, low=None, high=None,
                 redistribute=False):  # fmt: skip
        super().__init__(params, dict(
            lr=lr, initial_accumulator_value=initial_accumulator_value, eps=eps,
            weight_decay=weight_decay, low=low, high=high, redistribute=redistribute,
        ))  # fmt: skip

    @torch.no_grad()
    def step(self):
        for group in self.param_groups:
            lr, eps, wd = group["lr"], group["eps"], group["weight_decay"]
            for p in group["params"]:
                s, r = self.state[p], []
                if not s:
                    s["acc"] = p.new_ones(len(p)) * group["initial_accumulator_value"]
                for n in range(len(p)):
                    s["acc"][n] += (p.grad[n] ** 2).mean()
                    r.append(1 / (s["acc"][n].sqrt() + eps))
                if group["redistribute"]:
                    mean = sum(r) / len(r)
                    r = [r_n / mean for r_n in r]
                if group["low"] is not None:
                    r = [r_n.clamp(min=group["low"]) for r_n in r]
                if group["high"] is not None:
                    r = [r_n.clamp(max=group["high"]) for r_n in r]
                for n in range(len(p)):
                    p[n] -= lr * (r[n] * p.grad[n] + wd * p[n])
                s["rate"] = torch.stack(r)
