"""Plan the memory of models too large to run here: nothing of them is allocated."""

import optax
from jax.sharding import AbstractMesh

from neuron_optax import adam_mini, neuron_rmsprop, rowwise_adagrad
from neuron_optax.architectures import architecture
from neuron_optax.memory import plan

MESH = AbstractMesh((64, 8), ("fsdp", "tp"))
DENSE = {
    "optax.adamw": optax.adamw(1e-3),
    "adam_mini": adam_mini(1e-3),
    "neuron_rmsprop": neuron_rmsprop(1e-3),
}
SPARSE = {
    "optax.adam": optax.adam(1e-3),
    "optax.adagrad": optax.adagrad(1e-2),
    "rowwise_adagrad": rowwise_adagrad(1e-2),
}
MODELS = {
    "llama-7b": DENSE,
    "llama-70b": DENSE,
    "llama-405b": DENSE,
    "dlrm-terabyte": SPARSE,
}

plans = {}
for name, strategies in MODELS.items():
    shapes, specs = architecture(name)
    plans[name] = plan(shapes, strategies, specs, MESH)
    print(f"{name}: {plans[name]}\n")

dense, sparse = plans["llama-405b"].rows, plans["dlrm-terabyte"].rows
saved = dense["optax.adamw"].per_device - dense["adam_mini"].per_device
tables = sparse["optax.adagrad"].total / sparse["rowwise_adagrad"].total
print(f"Adam-mini saves {saved / 1e9:.1f} GB of each device for the 405B model.")
print(f"Row-wise AdaGrad keeps {tables:.0f} times less than AdaGrad for the tables.")
assert 3.1 < saved / 1e9 < 3.2
assert 120 < tables < 130
