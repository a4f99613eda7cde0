"""RMSprop (Tieleman & Hinton 2012); each row has one v, of the mean of its g**2."""

import torch


class NeuronRMSprop(torch.optim.Optimizer):
    """RMSprop whose second moment is one number for each neuron (row)."""

    def __init__(self, params, lr, decay=0.9, eps=1e-8, *, weight_decay=0.0,
                 low=None, high=None, redistribute=False):  # fmt: skip
        super().__init__(params, dict(
            lr=lr, decay=decay, eps=eps,
            weight_decay=weight_decay, low=low, high=high, redistribute=redistribute,
        ))  # fmt: skip

    @torch.no_grad()
    def step(self):
        for group in self.param_groups:
            lr, decay, wd = group["lr"], group["decay"], group["weight_decay"]
            for p in group["params"]:
                s, r = self.state[p], []
                if not s:
                    s["v"] = p.new_zeros(len(p))
                for n in range(len(p)):
                    g2 = (p.grad[n] ** 2).mean()
                    s["v"][n] = decay * s["v"][n] + (1 - decay) * g2
                    r.append(1 / (s["v"][n].sqrt() + group["eps"]))
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
