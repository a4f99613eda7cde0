"""A network that torch and JAX train alike, and what carries a run over."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import torch

from neuron_optax.interop import (
    params_from_torch,
    params_to_torch,
    state_from_torch,
    state_to_torch,
)

STEPS, RATE = 10, 0.01
TOKENS = np.array([0, 3, 1, 1, 2, 0])
TARGETS = np.random.default_rng(0).standard_normal((6, 2))
SCHEDULE = lambda step: RATE / (1 + jnp.asarray(step, "float64"))
SHAPES = {
    "embed": {"embedding": (5, 4)},
    "norm": {"scale": (4,), "bias": (4,)},
    "query": {"kernel": (4, 2, 2), "bias": (2, 2)},
    "linear": {"kernel": (4, 2), "bias": (2,)},
}
LIKE = jax.tree.map(
    lambda shape: jax.ShapeDtypeStruct(shape, "float64"),
    SHAPES,
    is_leaf=lambda node: isinstance(node, tuple),
)


class Network(torch.nn.Module):
    """Tokens, a normalisation, two linear layers; every weight is drawn."""

    def __init__(self, seed=1):
        super().__init__()
        self.embed = torch.nn.Embedding(5, 4)
        self.norm = torch.nn.LayerNorm(4)
        self.query = torch.nn.Linear(4, 4)
        self.linear = torch.nn.Linear(4, 2)
        rng = np.random.default_rng(seed)
        for parameter in self.double().parameters():
            parameter.data = torch.tensor(rng.standard_normal(tuple(parameter.shape)))

    def loss(self):
        """Return the mean square of the errors."""
        hidden = torch.tanh(self.query(self.norm(self.embed(torch.tensor(TOKENS)))))
        return ((self.linear(hidden) - torch.tensor(TARGETS)) ** 2).mean()


def loss(params):
    x = params["embed"]["embedding"][TOKENS]
    x = (x - x.mean(-1, keepdims=True)) / jnp.sqrt(x.var(-1, keepdims=True) + 1e-5)
    x = x * params["norm"]["scale"][None] + params["norm"]["bias"][None]
    x = jnp.einsum("bi,ihd->bhd", x, params["query"]["kernel"])
    x = jnp.tanh(x + params["query"]["bias"][None]).reshape(len(TOKENS), -1)
    x = x @ params["linear"]["kernel"] + params["linear"]["bias"][None]
    return ((x - TARGETS) ** 2).mean()


def run_torch(module, optimizer, rates=(RATE,) * STEPS):
    for rate in rates:
        for group in optimizer.param_groups:
            group["lr"] = float(rate)
        optimizer.zero_grad()
        module.loss().backward()
        optimizer.step()
    return optimizer


gradient = jax.jit(jax.grad(loss))


def run_jax(optimizer, params, state):
    update = jax.jit(optimizer.update)
    for _ in range(STEPS):
        updates, state = update(gradient(params), state, params)
        params = optax.apply_updates(params, updates)
    return params, state


def carried(theirs, module, ours, **said):
    """Return params and state of a run of torch for an optimizer of ours."""
    params = params_from_torch(module, LIKE)
    fresh = ours.init(params)
    return params, state_from_torch(theirs, module, fresh, params, **said)


def carried_back(make, params, state, **said):
    """Return a network and its optimizer that go on from a run of ours."""
    module = Network(seed=2)
    module.load_state_dict(params_to_torch(params, module), strict=True)
    optimizer = make(module.parameters())
    whole = state_to_torch(state, optimizer, module, params, **said)
    optimizer.load_state_dict(whole)
    return module, optimizer
