"""Training with every strategy: losses fall, and updates have finite derivatives."""

import chex
import jax
import jax.numpy as jnp
import optax
import pytest

from tests.contract_models import ALIASES, BY_HAND, FREE, all_zero, layer_of, normal

PARAMS, GRADIENT = layer_of(), layer_of(seed=1)


def losses_of(make):
    """Return two losses before training, and at several rates after it."""
    steps, rates = 1000, jnp.array([1.0, 0.1, 0.01, 0.003, 3e-5])
    start = {"parabola": normal((2, 2)), "rosenbrock": jnp.array([-1.2, 1.0])}

    def losses(params):
        x, y = params["rosenbrock"]
        return {
            "parabola": jnp.sum((params["parabola"] - 3) ** 2),
            "rosenbrock": (1 - x) ** 2 + 100 * (y - x**2) ** 2,
        }

    def train(rate):
        optimizer = make(optax.linear_schedule(rate, 0.0, steps))

        def step(carry, _):
            params, state = carry
            gradient = jax.grad(lambda p: sum(losses(p).values()))(params)
            updates, state = optimizer.update(gradient, state, params)
            return (optax.apply_updates(params, updates), state), None

        carry = start, optimizer.init(start)
        return losses(jax.lax.scan(step, carry, length=steps)[0][0])

    return losses(start), jax.jit(jax.vmap(train))(rates)


@pytest.mark.parametrize("make", FREE + BY_HAND)
def test_every_loss_falls_at_some_learning_rate(make):
    before, after = losses_of(make)
    for name in before:
        assert jnp.nanmin(after[name]) < before[name] / 20, name


@pytest.mark.parametrize("make", [row for row in ALIASES if row not in FREE])
def test_weights_on_a_surface_do_not_reach_every_minimum(make):
    before, after = losses_of(make)
    assert jnp.nanmin(after["parabola"]) > before["parabola"] / 20


def derivative(optimizer, gradient):
    """Differentiate what two steps sum up to by their gradient."""

    def moved(gradient):
        params, state = PARAMS, optimizer.init(PARAMS)
        for _ in range(2):
            updates, state = optimizer.update(gradient, state, params)
            params = optax.apply_updates(params, updates)
        return sum(jnp.sum(leaf) for leaf in jax.tree.leaves(params))

    return jax.jit(jax.grad(moved))(gradient)


ZEROS = jax.tree.map(jnp.zeros_like, PARAMS)


@pytest.mark.parametrize("make", ALIASES)
def test_derivative_of_an_update_is_finite_at_zero_gradients(make):
    optimizer = make(0.01)
    chex.assert_tree_all_finite(derivative(optimizer, ZEROS))
    assert not all_zero(derivative(optimizer, GRADIENT))


def test_derivative_of_adam_of_optax_is_not_finite_there():
    slope = derivative(optax.adam(0.01), ZEROS)
    assert all(jnp.isnan(leaf).all() for leaf in jax.tree.leaves(slope))
