"""Statistics, accumulators and rates are their formulas, leaf by leaf."""

import jax.numpy as jnp
import numpy as np
import pytest

import neuron_optax as no

RNG = np.random.default_rng(0)
SHAPE, FAN_IN = (3, 4, 5), (0, 1)
UPDATE = RNG.normal(size=SHAPE)
PARAM = RNG.normal(size=SHAPE)
COMPLEX = UPDATE + 1j * PARAM

pytestmark = pytest.mark.usefixtures("float64")


def per_neuron(formula):
    """Loop over the last axis, so that no axis argument can be wrong."""
    values = [formula(UPDATE[..., n], PARAM[..., n]) for n in range(SHAPE[-1])]
    return np.array(values).reshape(1, 1, -1)


STATISTICS = {
    "sum_square": (no.sum_square, lambda u, w: (u * u).sum()),
    "mean_square": (no.mean_square, lambda u, w: (u * u).sum() / 12),
    "norm": (no.norm, lambda u, w: (u * u).sum() ** 0.5),
    "param_norm": (no.param_norm, lambda u, w: (w * w).sum() ** 0.5),
    "param_rms": (no.param_rms, lambda u, w: ((w * w).sum() / 12) ** 0.5),
    "trust_ratio": (
        no.trust_ratio,
        lambda u, w: ((w * w).sum() / (u * u).sum()) ** 0.5,
    ),
    "touched": (no.touched, lambda u, w: 1.0),
}


@pytest.mark.parametrize(("statistic", "formula"), STATISTICS.values(), ids=STATISTICS)
def test_a_statistic_reduces_the_fan_in(statistic, formula):
    actual = statistic(jnp.asarray(UPDATE), jnp.asarray(PARAM), FAN_IN)
    np.testing.assert_allclose(actual, per_neuron(formula), rtol=1e-14)
    assert statistic(jnp.asarray(UPDATE), jnp.asarray(PARAM), ()).shape == SHAPE


@pytest.mark.parametrize("statistic", [no.sum_square, no.mean_square, no.norm])
def test_a_statistic_of_complex_numbers_is_real(statistic):
    actual = statistic(jnp.asarray(COMPLEX), None, FAN_IN)
    parts = [statistic(jnp.asarray(part), None, FAN_IN) for part in (UPDATE, PARAM)]
    whole = np.hypot(*parts) if statistic is no.norm else parts[0] + parts[1]
    np.testing.assert_allclose(actual, whole, rtol=1e-14)
    assert actual.dtype == np.float64


def test_trust_ratio_is_one_where_a_norm_is_zero():
    zero = jnp.zeros((2, 1))
    for update, param in ((zero, zero + 1), (zero + 1, zero), (zero, zero)):
        assert no.trust_ratio(update, param, (0,)).item() == 1.0


def test_touched_is_zero_without_gradient():
    assert no.touched(jnp.zeros((2, 3)), None, (0,)).tolist() == [[0.0, 0.0, 0.0]]


@pytest.mark.parametrize("statistic", [no.param_norm, no.param_rms, no.trust_ratio])
def test_a_statistic_of_the_weights_raises_without_them(statistic):
    with pytest.raises(ValueError, match="pass params to update"):
        statistic(jnp.asarray(UPDATE), None, FAN_IN)


ACCUMULATORS = {
    "latest": (no.latest(), lambda s: s[-1]),
    "total": (no.total(0.5), lambda s: 0.5 + s.sum(0)),
    "average": (no.average(), lambda s: s.mean(0)),
    "maximum": (no.maximum(), lambda s: s.max(0)),
    "ema": (
        no.ema(0.7, debias=False),
        lambda s: sum(0.3 * 0.7 ** (len(s) - 1 - i) * s[i] for i in range(len(s))),
    ),
    "ema, corrected": (
        no.ema(0.7),
        lambda s: np.average(s, axis=0, weights=0.7 ** np.arange(len(s))[::-1]),
    ),
}


@pytest.mark.parametrize(
    ("accumulator", "formula"), ACCUMULATORS.values(), ids=ACCUMULATORS
)
def test_an_accumulator_remembers_what_its_formula_says(accumulator, formula):
    series = np.square(RNG.normal(size=(6, 1, 5)))
    memory = accumulator.init(jnp.zeros((1, 5)))
    for step in range(len(series)):
        memory = accumulator.update(memory, jnp.asarray(series[step]))
        value = accumulator.read(memory, jnp.asarray(step + 1))
        np.testing.assert_allclose(value, formula(series[: step + 1]), rtol=1e-13)


VALUES = np.array([[0.0, 0.25, 4.0]])
RATES = {
    "inverse_root": (no.inverse_root(0.5), [[2.0, 1.0, 0.4]]),
    "reciprocal": (no.reciprocal(0.5), [[2.0, 2.0, 0.25]]),
    "affine": (no.affine(2.0), [[1.0, 1.5, 9.0]]),
    "power": (no.power(-0.5), [[0.0, 2.0, 0.5]]),
    "positive power": (no.power(2.0), [[0.0, 0.0625, 16.0]]),
    "identity": (no.identity(), VALUES),
    "bounded": (no.bounded(no.identity(), 0.1, 1.0), [[0.1, 0.25, 1.0]]),
    "bounded below": (no.bounded(no.identity(), low=0.1), [[0.1, 0.25, 4.0]]),
    "unbounded": (no.bounded(no.identity()), VALUES),
    "redistributed": (no.redistributed(no.affine(4.0)), [[1 / 9.5, 2 / 9.5, 17 / 9.5]]),
}


@pytest.mark.parametrize(("rate", "expected"), RATES.values(), ids=RATES)
def test_a_rate_is_its_formula(rate, expected):
    actual = rate.apply(jnp.asarray(VALUES), (1,))
    np.testing.assert_allclose(actual, expected, rtol=1e-14)


def test_redistribution_keeps_copies_apart_and_survives_zeros():
    value = jnp.array([[1.0, 3.0], [0.0, 0.0]])
    actual = no.redistributed(no.identity()).apply(value, (1,))
    np.testing.assert_array_equal(actual, [[0.5, 1.5], [0.0, 0.0]])
