"""What a row of the table of strategies says, and the numbers all rows run on."""

import dataclasses
import functools
import importlib
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

STEPS = 20
SCHEDULE = lambda step: jnp.where(step < 7, 0.2, 0.05)  # exact, jitted or not
SLOW = {"learning_rate": lambda step: jnp.where(step < 7, 2e-3, 5e-4)}

# Flax layout; torch has the last axis first. A wrong axis fits the square kernel.
SHAPES = {
    "Dense_0": {"kernel": (3, 4), "bias": (4,)},
    "Dense_1": {"kernel": (4, 4), "bias": (4,)},
    "Conv_0": {"kernel": (3, 2, 2, 5), "bias": (5,)},
}
EVERY = "neuron", "entry", "layer"
NUMBERS = "memory", "rate"


@dataclasses.dataclass(frozen=True)
class Case:
    """One strategy; ``build(learning_rate, neurons=, bias=, **hyperparameters)``.

    Attributes:
      build: the strategy.
      oracle: ``module:Class`` under ``tests.reference``.
      variants: arguments off their default, by name; given to both sides.
      state: field of our state to key of the oracle's.
      bias: whose rate a bias uses by default; ``None`` if there is no such choice.
      learning_rate: small enough for gradients that span six decades.
      digits: the learning rate with which it recognises 95 % of the example's digits;
        one in the middle of a range, a factor of two or more wide, that do.
      isolated: no neuron moves another, bit for bit.
      coupled: variants in which neurons do move one another, by the mean of a layer.
      isolable: of its state can be told what belongs to a neuron, so that
        `isolate_nonfinite` takes it.
      permutation: permuting neurons permutes updates, bit for bit where isolated.
      transposes: transposing a kernel and its layout transposes the update.
      granularities: at which it is compared with its oracle.
      per_entry: the known optimizer it is where every entry is a neuron, and with
        what off its default.
      per_layer: the known optimizer it is where every leaf is a neuron, and with what
        off its default.
      layer_tolerance: of the latter comparison.
      needs_params: whether ``update`` needs the weights.
      by_weights: whether its factors follow the weights, not the gradients.
      alias: whether it is a public name, not a chain made here.
      decays: ``"before"`` if decay is decoupled and of the weights before the step,
        ``"otherwise"``, or ``"never"``.
      rests: whether a step of rate zero, or without gradients, moves nothing.
      waits: whether a gradient of zero leaves a neuron and its state as they are.
      at_rest: how far rounding moves a neuron that has no gradient.
      sparse: whether neurons are active in some steps only.
      steady: whether smooth gradients of active neurons leave its factors alike.
      start: turns drawn weights into those to start from, given ``neurons``.
      numbers: fields of the state with one number per neuron.
      options: with which the contract is tested, so that its state counts.
      given: turns what is off its default into the arguments of the oracle.
      on_adam: whether it has Optax's Adam for a direction, whose eps is 0 in float16.
      on_surface: whether its weights keep their norm, so that not every loss falls.
      direction: what the rates in its state multiply: with its defaults and `options`
        the step is minus their product. ``None`` if it is not.
      tolerance: of parity, where it is not rounding alone.
    """

    build: Callable[..., optax.GradientTransformationExtraArgs]
    oracle: str
    variants: Mapping[str, Mapping[str, Any]]
    state: Mapping[str, str]
    bias: str | None = "own"
    learning_rate: float = 0.1
    digits: float = 0.0
    isolated: bool = True
    coupled: frozenset[str] = frozenset({"redistribute", "redistribute_bounds"})
    isolable: bool = True
    permutation: bool = True
    transposes: bool = True
    granularities: tuple[str, ...] = EVERY
    per_entry: tuple[Callable[..., Any], Mapping[str, Any]] | None = None
    per_layer: tuple[Callable[..., Any], Mapping[str, Any]] | None = None
    layer_tolerance: float = 1e-12
    needs_params: bool = False
    by_weights: bool = False
    alias: bool = True
    decays: str = "before"
    rests: bool = True
    waits: bool = False
    at_rest: float = 0.0
    sparse: bool = False
    steady: bool = False
    start: Callable[..., Any] = lambda params, neurons: params
    numbers: tuple[str, ...] = NUMBERS
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    given: Callable[..., Mapping[str, Any]] = lambda changed: changed
    on_adam: bool = False
    on_surface: bool = False
    direction: optax.GradientTransformation | None = None
    tolerance: float = 1e-12

    def make(self, changed, **options):
        """Build the strategy with ``changed`` off its default; update is jitted."""
        options = {"learning_rate": self.learning_rate, **options, **changed}
        if self.bias is None:
            options.pop("bias", None)
        return compiled(self.build, tuple(sorted(options.items())))


@functools.cache
def compiled(build, options):
    """Build an optimizer that is compiled once for all tests that make it."""
    optimizer = build(**dict(options))
    return optimizer._replace(update=jax.jit(optimizer.update))


def oracle(reference):
    """Import an oracle; torch is imported with it."""
    module, name = reference.split(":")
    return getattr(importlib.import_module(f"tests.reference.{module}"), name)


def draw(seed, scale=1.0):
    """Draw a tree of SHAPES."""
    rng = np.random.default_rng(seed)
    return {
        layer: {name: scale * rng.standard_normal(shape) for name, shape in of.items()}
        for layer, of in SHAPES.items()
    }


def gradients(steps=STEPS, sparse=False):
    """Draw gradients whose size spans six decades from neuron to neuron.

    If sparse, neuron number n has one in every (n + 1)th step, its bias a step later.
    """

    def size(step, name, neurons):
        active = (step + (name == "kernel")) % np.arange(1, neurons + 1) == 0
        return np.logspace(-3, 3, neurons) * (active | (not sparse))

    def sized(step, of):
        return {n: size(step, n, leaf.shape[-1]) * leaf for n, leaf in of.items()}

    return [
        {layer: sized(step, of) for layer, of in draw(100 + step).items()}
        for step in range(steps)
    ]
