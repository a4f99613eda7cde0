"""Exact row-wise Adagrad (DLRM, arXiv:1906.00091; FBGEMM's EXACT_ROWWISE_ADAGRAD).

A row of an embedding table changes only in a step whose batch names it; its gradient
is the sum over the places that do (`p.grad`: sparse, not coalesced). `max_norm` is
FBGEMM's: a row that comes out longer is scaled back to it.
"""

import torch


class RowAdagrad(torch.optim.Optimizer):
    """Adagrad with one accumulator a row, in the rows of the batch and no other."""

    def __init__(self, params, lr, initial_accumulator_value=0.0, eps=1e-10, *,
                 weight_decay=0.0, decay="decoupled", max_norm=None):  # fmt: skip
        super().__init__(params, dict(
            lr=lr, initial_accumulator_value=initial_accumulator_value, eps=eps,
            weight_decay=weight_decay, decay=decay, max_norm=max_norm))  # fmt: skip

    @torch.no_grad()
    def step(self):
        for group in self.param_groups:
            lr, eps, wd = group["lr"], group["eps"], group["weight_decay"]
            l2, c = group["decay"] == "l2", group["max_norm"]
            for p in group["params"]:
                s, ids, places = self.state[p], p.grad._indices()[0], p.grad._values()
                if not s:
                    s["a"] = p.new_full((len(p),), group["initial_accumulator_value"])
                for i in sorted(set(ids.tolist())):
                    g, w = places[ids == i].sum(0), p[i].clone()
                    if l2:
                        g = g + wd * w
                    s["a"][i] += (g**2).mean()
                    p[i] -= lr * g / (s["a"][i].sqrt() + eps)
                    if not l2:
                        p[i] -= lr * wd * w
                    if c is not None and p[i].norm() > c:
                        p[i] *= c / p[i].norm()
