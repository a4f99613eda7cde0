"""The collectives of a compiled step are read as they are, a TPU's without a TPU."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import export
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from benchmarks.collectives import Collective, beyond, collectives, within_neurons
from benchmarks.compile_only import OPTIMIZERS, compiled_step, sharded_step
from benchmarks.targets import TARGETS, mesh_of
from benchmarks.transformer import Model
from neuron_optax.portable import register_states
from tests.contract_models import CLOSE

ALONE = """
  %all-reduce.1 = f32[2,64]{1,0:T(2,128)S(1)} all-reduce(%p), channel_id=1
  %bitcast.1 = f32[128]{0} bitcast(%all-reduce.1)
  ROOT %fusion = f32[8] fusion(%bitcast.1), kind=kLoop, calls=%all-reduce.fused
"""
COMBINED = """
  %all-reduce.2 = (f32[]{:T(128)}, bf16[4,8]{1,0:T(8,128)(2,1)}, \
/*index=2*/pred[3]{0}) all-reduce(%a, %b, %c), channel_id=2
"""
IN_FLIGHT = """
  %ag-start = (f32[2,4]{1,0}, f32[8,4]{1,0}) all-gather-start(%p), channel_id=3
  %all-gather-done = f32[8,4]{1,0} all-gather-done(%ag-start), metadata={}
"""
FUSED = """
  %all-gather.1 = bf16[16]{0:T(256)S(1)} all-gather(%p.1), channel_id=4, dimensions={0}
  %all-gather.2 = bf16[16]{0:T(256)} all-gather(%p.2), channel_id=4, dimensions={0}
"""
READ = {
    "alone": (ALONE, ["all-reduce f32[2,64]"]),
    "combined": (
        COMBINED,
        ["all-reduce f32[]", "all-reduce bf16[4,8]", "all-reduce pred[3]"],
    ),
    "in_flight": (IN_FLIGHT, ["all-gather f32[8,4]"]),
    "fused": (FUSED, ["all-gather bf16[16]"]),
}


@pytest.mark.parametrize(("hlo", "expected"), READ.values(), ids=READ)
def test_collectives_are_read_once_each(hlo, expected):
    assert [str(one) for one in collectives(hlo)] == expected


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        (P("x", None), [Collective("all-reduce", "f32", (4,))]),
        (P(None, "x"), []),
    ],
    ids=["cut", "whole"],
)
def test_only_a_sum_over_a_cut_axis_is_reduced_by_all(spec, expected):
    mesh = Mesh(np.array(jax.devices()[:2]), ("x",))
    kernel = jnp.ones((8, 4), device=NamedSharding(mesh, spec))
    total = jax.jit(lambda kernel: kernel.sum(0)).lower(kernel).compile()
    assert collectives(total.as_text()) == expected


def vector(size, kind="all-reduce", dtype="f32"):
    return Collective(kind, dtype, (1, size))


def test_what_a_step_has_beyond_its_baseline_is_counted():
    gradient = Collective("all-reduce", "f32", (8, 4))
    extra = beyond([vector(3), gradient, vector(4), vector(4)], [vector(4), gradient])
    assert [str(one) for one in extra] == ["all-reduce f32[4]", "all-reduce f32[3]"]
    assert beyond([gradient], [gradient, gradient]) == []


WITHIN = {"nothing": [], "each": [vector(3), vector(8)], "some": [vector(4)]}
NOT_WITHIN = {
    "longer": [vector(9)],
    "twice": [vector(8), vector(8)],
    "more": [vector(1), vector(1), vector(1)],
    "gathered": [vector(4, kind="all-gather")],
    "wider": [vector(4, dtype="f64")],
}


@pytest.mark.parametrize("extra", WITHIN.values(), ids=WITHIN)
def test_sums_of_one_float_per_neuron_are_within_the_neurons(extra):
    assert within_neurons(extra, neurons=[3, 8])


@pytest.mark.parametrize("extra", NOT_WITHIN.values(), ids=NOT_WITHIN)
def test_other_collectives_are_not_within_the_neurons(extra):
    assert not within_neurons(extra, neurons=[3, 8])


SMALL = Model(layers=1, width=512, heads=4, vocabulary=1024, batch=8, length=32)


@pytest.fixture(scope="module")
def on_tpus():
    """Compile steps for eight TPUs that are not here."""
    pytest.importorskip("libtpu", reason="the compiler of TPUs: pip install libtpu")
    target = TARGETS["tpu v5e:2x4"]
    mesh = mesh_of(target)

    @functools.cache
    def compiled(name, **options):
        optimizer = OPTIMIZERS[name]
        return compiled_step(optimizer, SMALL, mesh, target.options, **options)

    return compiled


@pytest.mark.slow
def test_on_tpus_a_neuron_sends_one_float_beyond_the_gradient(on_tpus):
    baseline, step = on_tpus("gradient only"), on_tpus("adam_mini")
    extra = beyond(step.collectives, baseline.collectives)
    assert len(extra) == 8  # embedding, query, key, value, out, up, down and head
    assert within_neurons(extra, step.neurons)


@pytest.mark.slow
def test_on_tpus_a_state_that_lies_as_the_params_sends_nothing(on_tpus):
    baseline, step = on_tpus("gradient only"), on_tpus("optax.adam")
    assert beyond(step.collectives, baseline.collectives) == []


@pytest.mark.slow
def test_on_tpus_a_replicated_state_sends_whole_kernels(on_tpus):
    baseline = on_tpus("gradient only")
    step = on_tpus("adam_mini", specs=replicated)
    extra = beyond(step.collectives, baseline.collectives)
    assert any(one.kind == "all-gather" and one.size >= 512 * 1024 for one in extra)
    assert not within_neurons(extra, step.neurons)


def replicated(optimizer, params, param_specs, mesh):
    """Leave the whole state on every device."""
    state = jax.eval_shape(optimizer.init, params)
    return jax.tree.map(lambda _: NamedSharding(mesh, P()), state)


BYTES = {  # of floats per parameter and per neuron
    "gradient only": (4, 0),
    "optax.adam": (12, 0),
    "adam_mini": (8, 8),
    "neuron_adagrad": (4, 8),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", BYTES)
def test_on_tpus_a_step_is_given_no_more_bytes_than_its_numbers_have(on_tpus, name):
    step, (entry, neuron) = on_tpus(name), BYTES[name]
    expected = entry * step.parameters + neuron * sum(step.neurons)
    # tokens, steps and vectors filled up to whole tiles are less than a hundredth
    assert step.argument_bytes == pytest.approx(expected, rel=0.01)


TINY = Model(layers=1, width=16, heads=4, vocabulary=32, batch=8, length=8)


def test_the_sharded_step_of_a_transformer_is_written_and_read_for_four_platforms():
    mesh = mesh_of(TARGETS["cpu x8"])
    step, args = sharded_step(OPTIMIZERS["adam_mini"], TINY, mesh)
    register_states()
    platforms = "cpu", "cuda", "tpu", "rocm"
    written = export.export(step, platforms=platforms)(*args).serialize()
    read = export.deserialize(written)
    assert read.platforms == platforms and read.nr_devices == 8

    def drawn(leaf):
        draw = np.random.default_rng(leaf.size).standard_normal(leaf.shape)
        return jax.device_put(np.abs(0.1 * draw).astype(leaf.dtype), leaf.sharding)

    # donated, so drawn for each; four platforms may round a quotient otherwise
    found = jax.jit(read.call)(*jax.tree.map(drawn, args))
    expected = step(*jax.tree.map(drawn, args))
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, **CLOSE), found, expected
    )
    moved = step(*jax.tree.map(drawn, args))[0]
    before = jax.tree.map(drawn, args)[0]
    assert not np.allclose(moved["embed"]["embedding"], before["embed"]["embedding"])
