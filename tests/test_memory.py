"""Planned bytes are those that devices hold; published models have their sizes."""

import pathlib
import runpy
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AbstractMesh, AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import neuron_optax
from neuron_optax import adam_mini, describe, rowwise_adagrad
from neuron_optax.__main__ import STRATEGIES, main
from neuron_optax.architectures import ARCHITECTURES, architecture
from neuron_optax.memory import plan, state_bytes

MODEL = {  # shape and spec of each leaf
    "embed": {"embedding": ((32, 16), P("tp", "fsdp"))},
    "Dense_0": {"kernel": ((16, 24), P("fsdp", "tp")), "bias": ((24,), P("tp"))},
    "attention": {"query": {"kernel": ((16, 2, 8), P("fsdp", "tp"))}},
    "norm": {"scale": ((16,), P())},
}
IS_LEAF = lambda node: isinstance(node, tuple)
SHAPES = jax.tree.map(
    lambda leaf: jax.ShapeDtypeStruct(leaf[0], jnp.float32), MODEL, is_leaf=IS_LEAF
)
SPECS = jax.tree.map(lambda leaf: leaf[1], MODEL, is_leaf=IS_LEAF)
MESH = AbstractMesh((4, 2), ("fsdp", "tp"))
MANY = AbstractMesh((64, 8), ("fsdp", "tp"))
COUNTS = {  # parameters, as published
    "llama-7b": 6_738_415_616,
    "llama-70b": 68_976_648_192,
    "llama-405b": 405_853_388_800,
}
every_strategy = pytest.mark.parametrize("name", STRATEGIES)


def allocated(optimizer):
    """Return the bytes that each device holds of a state, by JAX's own sharding."""
    types = (AxisType.Explicit,) * 2
    mesh = jax.make_mesh((4, 2), ("fsdp", "tp"), types)
    shardings = jax.tree.map(lambda spec: NamedSharding(mesh, spec), SPECS)
    ones = jax.tree.map(lambda leaf: np.ones(leaf.shape, leaf.dtype), SHAPES)
    held = dict.fromkeys(mesh.devices.flat, 0)
    with jax.set_mesh(mesh):
        state = jax.jit(optimizer.init)(jax.device_put(ones, shardings))
    for leaf in jax.tree.leaves(state):
        for shard in leaf.addressable_shards:
            held[shard.device] += shard.data.nbytes
    return list(held.values())


@every_strategy
def test_planned_totals_are_the_bytes_of_real_states(name):
    params = jax.tree.map(lambda leaf: jnp.ones(leaf.shape), SHAPES)
    state = STRATEGIES[name].init(params)
    expected = sum(leaf.nbytes for leaf in jax.tree.leaves(state))
    assert state_bytes(STRATEGIES[name], SHAPES) == expected
    assert plan(params, {name: STRATEGIES[name]}).rows[name].total == expected


@every_strategy
@pytest.mark.filterwarnings("ignore:.*state_specs replicates")  # APOLLO's, as JAX does
def test_planned_bytes_per_device_are_those_that_each_device_holds(name):
    optimizer = STRATEGIES[name]
    row = plan(SHAPES, {name: optimizer}, SPECS, MESH).rows[name]
    assert allocated(optimizer) == [row.per_device] * 8


def test_totals_tell_apart_what_one_number_per_neuron_saves():
    adam, mini = optax.adam(1.0), adam_mini(1.0)
    sizes = [leaf.size for leaf in jax.tree.leaves(SHAPES)]
    numbers = 32 + 24 + 24 + 16 + 16  # tokens, kernel and bias, query, norm
    assert state_bytes(adam, SHAPES) == 8 * sum(sizes) + 4
    assert state_bytes(mini, SHAPES) == 4 * sum(sizes) + 8 * numbers + 8
    assert state_bytes(mini, SHAPES) != state_bytes(adam, SHAPES)


@pytest.mark.parametrize("specs", [P(), P("fsdp")], ids=["replicated", "elsewhere"])
def test_the_comparison_notices_other_specs(specs):
    row = plan(SHAPES, {"": optax.adam(1.0)}, specs, MESH).rows[""]
    assert allocated(optax.adam(1.0)) != [row.per_device] * 8


def test_without_specs_every_device_has_all():
    for mesh in (None, MESH):
        rows = plan(SHAPES, {"adam": optax.adam(1.0)}, mesh=mesh).rows
        assert all(row.per_device == row.total for row in rows.values())


def test_the_first_row_is_of_the_parameters():
    half = jax.tree.map(lambda leaf: leaf.update(dtype=jnp.bfloat16), SHAPES)
    rows = plan(half, {"trace": optax.trace(0.9, accumulator_dtype=jnp.float32)}).rows
    size = sum(leaf.size for leaf in jax.tree.leaves(SHAPES))
    assert list(rows) == ["parameters", "trace"]
    assert rows["parameters"] == (2 * size, 2 * size, 2.0, 1.0)
    assert rows["trace"] == (4 * size, 4 * size, 4.0, 2.0)


@pytest.mark.parametrize("name", COUNTS)
def test_models_have_as_many_parameters_as_published(name):
    shapes, specs = architecture(name)
    assert plan(shapes, {}, specs, MANY).parameters == COUNTS[name]


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_names_explain_the_neurons_of_every_leaf(name, capsys):
    describe(architecture(name)[0])
    assert "check" not in capsys.readouterr().out


@pytest.mark.parametrize("name", ["optax.adamw", "adam_mini", "normuon"])
def test_totals_of_a_7b_model_are_those_of_its_abstract_state(name):
    shapes, specs = architecture("llama-7b")
    state = jax.eval_shape(STRATEGIES[name].init, shapes)
    expected = sum(
        int(np.prod(leaf.shape, dtype=object)) * leaf.dtype.itemsize
        for leaf in jax.tree.leaves(state)
    )
    row = plan(shapes, {name: STRATEGIES[name]}, specs, MANY).rows[name]
    assert row.total == expected


def test_bytes_of_a_7b_model_are_those_counted_by_hand():
    shapes, specs = architecture("llama-7b")
    strategies = {name: STRATEGIES[name] for name in ("optax.adamw", "adam_mini")}
    rows = plan(shapes, strategies, specs, MANY).rows
    entries, norms = 6_738_415_616, 65 * 4096  # norms are whole on every device
    over_tp = 2 * 32000 + 32 * (3 * 4096 + 2 * 11008)  # table, head, q, k, v, gate, up
    over_fsdp = 32 * 2 * 4096  # attention's output and the way down
    neurons = over_tp + over_fsdp + norms
    held = (entries - norms) // 512 + norms
    numbers = over_tp // 8 + over_fsdp // 64 + norms
    assert rows["parameters"][:2] == (4 * entries, 4 * held)
    assert rows["optax.adamw"][:2] == (8 * entries + 4, 8 * held + 4)  # and a step
    mini = 4 * entries + 8 * neurons + 8, 4 * held + 8 * numbers + 8  # and two steps
    assert rows["adam_mini"][:2] == mini
    assert rows["optax.adamw"][:2] != mini


def test_tables_of_a_terabyte_keep_two_numbers_per_row():
    shapes, specs = architecture("dlrm-terabyte")
    rows = plan(shapes, {"rowwise": rowwise_adagrad(1.0)}, specs, MANY).rows
    tables = 882_774_559 * 256 * 4  # and less than a thousandth for padding and layers
    assert tables < rows["parameters"].total < 1.001 * tables
    np.testing.assert_allclose(rows["rowwise"].total, 8 * 882_774_559, rtol=1e-3)
    np.testing.assert_allclose(
        rows["rowwise"].per_device, rows["rowwise"].total / 512, rtol=0.02
    )


def test_the_table_is_aligned_and_says_its_units():
    planned = plan(SHAPES, {"adam_mini": adam_mini(1.0)}, SPECS, MESH)
    head, *table = str(planned).splitlines()
    assert head == "1,192 parameters on 8 devices (fsdp=4, tp=2), 1 kB = 1000 B"
    assert len({len(line) for line in table}) == 1 and len(table) == 3
    assert table[1].split() == "parameters 4.77 kB 688.00 B 4.0000 100.00%".split()


def test_the_command_prints_the_table(capsys):
    main("plan --model llama-7b --mesh fsdp=64,tp=8 --strategies adam_mini".split())
    printed = capsys.readouterr().out
    shapes, specs = architecture("llama-7b")
    assert printed == f"{plan(shapes, {'adam_mini': adam_mini(1.0)}, specs, MANY)}\n"
    main("plan --model llama-7b --strategies adam_mini".split())
    assert "on 1 device," in capsys.readouterr().out != printed


def test_the_command_says_in_a_line_what_is_replicated_for_want_of_knowledge(capsys):
    command = "plan --model dlrm-terabyte --mesh fsdp=64 --strategies "
    main([*command.split(), "adam_mini"])
    assert not capsys.readouterr().err
    main([*command.split(), "apollo"])
    noted = capsys.readouterr().err
    assert noted.startswith("note: apollo: state_specs replicates") and len(noted) < 220


def test_python_runs_the_package_with_its_usual_strategies(capsys, monkeypatch):
    arguments = "neuron_optax plan --model dlrm-terabyte --mesh fsdp=8".split()
    monkeypatch.setattr(sys, "argv", arguments)
    package = pathlib.Path(neuron_optax.__file__).parent
    runpy.run_path(str(package / "__main__.py"), run_name="__main__")
    head, _, *rows = capsys.readouterr().out.splitlines()
    assert "8 devices (fsdp=8, tp=1)" in head
    names = [row.split()[0] for row in rows]
    assert names[:2] == ["parameters", "optax.adamw"] and "adam_mini" in names


REFUSED = {  # arguments after "plan" and what the message says
    "no model": ("", "--model"),
    "model": ("--model llama-8b", "'llama-8b'"),
    "axis": ("--model llama-7b --mesh data=2", "'data'"),
    "size": ("--model llama-7b --mesh fsdp=0", "'fsdp=0'"),
    "word": ("--model llama-7b --mesh 8", "'8'"),
    "twice": ("--model llama-7b --mesh tp=2,tp=4", "'tp=2,tp=4'"),
    "comma": ("--model llama-7b --mesh tp=2,", "'tp=2,'"),
    "strategy": ("--model llama-7b --strategies adam_mini,adam", "'adam'"),
    "indivisible": ("--model llama-70b --mesh tp=16", "attention/key/kernel"),
}


@pytest.mark.parametrize(("text", "said"), REFUSED.values(), ids=REFUSED)
def test_the_command_says_what_does_not_fit(text, said, capsys):
    with pytest.raises(SystemExit, match="2"):
        main(["plan", *text.split()])
    error = capsys.readouterr().err
    assert "python -m neuron_optax plan: error: " in error and said in error


def test_what_does_not_fit_is_refused():
    adam = {"adam": optax.adam(1.0)}
    with pytest.raises(ValueError, match=r"llama-405b, dlrm-terabyte, got 'llama'"):
        architecture("llama")
    with pytest.raises(ValueError, match="param_specs need a mesh"):
        plan(SHAPES, adam, SPECS)
    with pytest.raises(ValueError, match="'parameters' names the row of the params"):
        plan(SHAPES, {"parameters": optax.adam(1.0)})
    with pytest.raises(ValueError, match="params must have entries"):
        plan({}, adam)
    with pytest.raises(TypeError, match="strategies"):
        plan(SHAPES, optax.adam(1.0))
    with pytest.raises(ValueError, match="Dense_0/kernel"):
        plan(SHAPES, adam, SPECS, AbstractMesh((5, 2), ("fsdp", "tp")))
    with pytest.raises(ValueError, match="'data': 8"):
        plan(SHAPES, adam, SPECS, AbstractMesh((8,), ("data",)))


def test_an_error_of_a_strategy_carries_its_name():
    layers = neuron_optax.layerwise({"Dense_0": 1.0})
    with pytest.raises(ValueError) as error:
        plan(SHAPES, {"adam": optax.adam(1.0), "layers": layers})
    assert "strategy 'layers'" in error.value.__notes__
    assert "strategy 'adam'" not in error.value.__notes__
