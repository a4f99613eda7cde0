"""Layers of torch compute in Flax and Equinox what they compute in torch."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen

torch = pytest.importorskip("torch")
eqx = pytest.importorskip("equinox")

from neuron_optax.interop import params_from_torch, params_to_torch  # noqa: E402
from tests.interop_models import CASES, SIZES, Recurrent  # noqa: E402
from tests.interop_twins import draw, drawn, forward, without_reset_bias  # noqa: E402

pytestmark = pytest.mark.usefixtures("float64")
TOLERANCE = 1e-12  # float64 on both sides: only the order of summation differs
MERGED = {"lstm", "gru"}  # of which two biases become one
QUICK = {"linear", "conv2d", "transposed2d", "attention", "batch_norm", "lstm", "gru"}
SLOW = pytest.mark.slow
every_layer = pytest.mark.parametrize(
    "name", [pytest.param(n, marks=[SLOW] * (n not in QUICK)) for n in CASES]
)


@every_layer
@pytest.mark.parametrize("size", ["square", pytest.param("oblong", marks=SLOW)])
def test_a_layer_computes_what_it_does_in_torch_and_goes_back(name, size):
    case = CASES[name](*SIZES[size])
    module = drawn(case.module)
    for library, twin in case.twins.items():
        without_reset_bias(library, module)
        expected = forward(module, case.inputs)
        tree = params_from_torch(module, twin.like, **twin.said)
        np.testing.assert_allclose(
            twin.run(tree, *case.inputs),
            expected,
            TOLERANCE,
            TOLERANCE,
            err_msg=library,
        )
        back = params_to_torch(tree, module, **twin.said)
        returned(module, back, exactly=name not in MERGED)
        module.load_state_dict(back, strict=True)
        np.testing.assert_allclose(forward(module, case.inputs), expected, rtol=1e-12)


class Bidirectional(linen.Module):
    """Two layers of LSTM, each in both directions."""

    @linen.compact
    def __call__(self, x):
        """Return the outputs of (batch, time, inputs)."""
        for layer in ("l0", "l1"):
            names = layer, f"{layer}_reverse"
            cells = [linen.LSTMCell(3, param_dtype=jnp.float64, name=n) for n in names]
            start = [jnp.zeros((len(x), 3), jnp.float64)] * 2
            ways = [linen.RNN(c, reverse=n, keep_order=n) for n, c in enumerate(cells)]
            sides = [way(x, initial_carry=tuple(start)) for way in ways]
            x = jnp.concatenate(sides, -1)
        return x


@pytest.mark.slow
def test_a_deep_lstm_in_both_directions_computes_what_it_does_in_torch():
    rnn = torch.nn.LSTM(2, 3, num_layers=2, bidirectional=True, batch_first=True)
    module, x = drawn(Recurrent(rnn)), draw(4, 5, 2)
    like = jax.eval_shape(Bidirectional().init, jax.random.key(0), x)
    params = params_from_torch(module, like, {"rnn": ""})
    expected = forward(module, [x])
    actual = Bidirectional().apply(params, x)
    np.testing.assert_allclose(actual, expected, TOLERANCE, TOLERANCE)
    swap = {n: n.removesuffix("_reverse") for n in params["params"]}
    swapped = {n: params["params"][o] for n, o in swap.items()}
    other = Bidirectional().apply({"params": swapped}, x)
    assert not np.allclose(other, expected, rtol=1e-3)


def returned(module, back, exactly):
    for key, tensor in module.state_dict().items():
        if exactly or "bias" not in key:
            np.testing.assert_array_equal(back[key], tensor, err_msg=key)
    both = {k: v for k, v in back.items() if "bias" in k}
    if not exactly:
        was = module.state_dict()
        summed = lambda tree: tree["rnn.bias_ih_l0"] + tree["rnn.bias_hh_l0"]
        np.testing.assert_array_equal(summed(both), summed(was))
        gates = slice(None) if isinstance(module.rnn, torch.nn.LSTM) else slice(8)
        assert not both["rnn.bias_hh_l0"][gates].any()


@pytest.mark.parametrize(
    "name", ["linear", *[pytest.param(n, marks=SLOW) for n in CASES]]
)
def test_the_comparison_notices_entries_elsewhere(name):
    case = CASES[name](*SIZES["square"])
    module = drawn(case.module)
    twin = next(iter(case.twins.values()))
    tree = params_from_torch(module, twin.like, **twin.said)
    moved = jax.tree.map(lambda x: jnp.flip(x) if eqx.is_inexact_array(x) else x, tree)
    actual = twin.run(moved, *case.inputs)
    assert not np.allclose(actual, forward(module, case.inputs), rtol=1e-3)
