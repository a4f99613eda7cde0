"""Run optimizers beside those of PyTorch and see in which step and weight they part."""

import jax
import numpy as np
import optax
import torch

from neuron_optax import neuron_rmsprop
from neuron_optax.interop.compare import compare_with_torch

jax.config.update("jax_enable_x64", True)  # rounding is then far below any difference
SHAPES = {"kernel": (8, 4), "bias": (4,)}
STEPS = 20


def draw(seed):
    """Return a layer of random numbers, those of the first neuron small."""
    rng, size = np.random.default_rng(seed), np.array([1e-3, 1.0, 1.0, 1.0])
    return {name: size * rng.standard_normal(shape) for name, shape in SHAPES.items()}


class RowRMSprop(torch.optim.Optimizer):
    """RMSprop with one mean of squares per row, as one would write it in PyTorch."""

    @torch.no_grad()
    def step(self):
        """Move every row by a rate of its own."""
        for p in self.param_groups[0]["params"]:
            square = (p.grad.reshape(len(p), -1) ** 2).mean(1)
            v = 0.9 * self.state[p].get("v", 0.0) + 0.1 * square
            self.state[p]["v"] = v
            rate = 0.01 / (v.sqrt() + 1e-8)
            p -= rate.reshape(-1, *[1] * (p.ndim - 1)) * p.grad


def compare(ours, theirs):
    """Compare on the same gradients; the rows of torch's tensors are our neurons."""
    gradients = [draw(seed) for seed in range(1, STEPS + 1)]
    return compare_with_torch(ours, theirs, draw(0), gradients)


print("Adam of Optax and of PyTorch:")
adam = compare(optax.adam(0.01), lambda named: torch.optim.Adam(named.values(), 0.01))
print("\nRMSprop per neuron, here and written in PyTorch:")
rows = compare(neuron_rmsprop(0.01), lambda named: RowRMSprop(named.values(), {}))
assert adam.parting is None and rows.parting is None

rmsprop = lambda named: torch.optim.RMSprop(named.values(), 0.01, alpha=0.9)
print("\nRMSprop of Optax, which adds eps inside the root, and of PyTorch:")
inside = compare(optax.rmsprop(0.01), rmsprop).parting
print("\nThe same with eps outside the root:")
outside = compare(optax.rmsprop(0.01, eps_in_sqrt=False), rmsprop)
worst = max(row.ulp for row in outside.differences)
print(f"\n{inside.ulp:.0e} units in the last place have become {worst:.0f}")
assert inside.step == 1 and inside.entry[-1] == 0 and inside.ulp > 1e9
assert outside.parting is None and worst <= 16
