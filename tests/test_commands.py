"""The commands print what the functions do, and say in one line what does not fit.

Of ``plan`` see ``test_memory``.
"""

import json
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint
import pytest
from flax import nnx, serialization

import neuron_optax
from neuron_optax import strategies
from neuron_optax.__main__ import LAYOUTS, PEERS, main
from neuron_optax.architectures import architecture

PARAMS = {
    "Dense_0": {"kernel": jnp.ones((3, 2)), "bias": jnp.ones(2)},
    "Conv_0": {"kernel": jnp.ones((3, 3, 2, 5), jnp.bfloat16)},
}
SAVED = {"params": PARAMS, "step": jnp.array(7), "momentum": {"w": jnp.ones((4, 2))}}
DOTTED = {"layers.0.weight": ("BF16", [4, 2]), "layers.0.ids": ("I64", [4])}


def printed(capsys, *arguments, note=""):
    main([*map(str, arguments)])
    out, err = capsys.readouterr()
    assert note in err if note else not err
    return out


def described(capsys, params, *layout):
    neuron_optax.describe(params, *layout)
    return capsys.readouterr().out


def refused(capsys, *arguments):
    """Return the message of a command that ends with code 2."""
    with pytest.raises(SystemExit) as left:
        main([*map(str, arguments)])
    out, err = capsys.readouterr()
    assert left.value.code == 2 and not out
    usage, _, message = err.partition(": error: ")
    assert usage.startswith("usage: python -m neuron_optax") and "\n" in usage
    return message


def as_npz(tree, path):
    leaves = jax.tree.leaves_with_path(tree)
    name = lambda keys: jax.tree_util.keystr(keys, simple=True, separator=".")
    np.savez(path, **{name(keys): np.asarray(leaf) for keys, leaf in leaves})


def as_msgpack(tree, path):
    path.write_bytes(serialization.to_bytes(tree))


def as_orbax(tree, path):
    with orbax.checkpoint.StandardCheckpointer() as checkpointer:
        checkpointer.save(path, tree)


FORMATS = {"saved.npz": as_npz, "saved.msgpack": as_msgpack, "saved": as_orbax}


@pytest.mark.parametrize("name", FORMATS)
def test_what_was_saved_is_described(name, tmp_path, capsys):
    FORMATS[name](SAVED, tmp_path / name)
    note = "note: the entries at its top are momentum, params: --at NAME"
    whole = printed(capsys, "describe", tmp_path / name, note=note)
    assert whole == described(capsys, SAVED)
    part = printed(capsys, "describe", tmp_path / name, "--at", "params")
    assert part == described(capsys, PARAMS) != whole


def test_params_of_nnx_have_the_names_of_their_variables(tmp_path, capsys):
    params = nnx.state(nnx.Linear(3, 2, rngs=nnx.Rngs(0)), nnx.Param)
    with orbax.checkpoint.CheckpointManager(tmp_path) as manager:
        manager.save(7, args=orbax.checkpoint.args.StandardSave(params))
    assert printed(capsys, "describe", tmp_path / "7") == described(capsys, params)
    assert "directories in it: ['7']" in refused(capsys, "describe", tmp_path)


def test_the_header_of_safetensors_is_enough(tmp_path, capsys):
    leaves = {n: {"dtype": t, "shape": of} for n, (t, of) in DOTTED.items()}
    header = json.dumps({"__metadata__": {"format": "pt"}, **leaves}).encode()
    path = tmp_path / "model.safetensors"
    path.write_bytes(len(header).to_bytes(8, "little") + header)
    params = {"layers": [{"weight": jnp.ones((4, 2))}]}
    expected = described(capsys, params, neuron_optax.TORCH)
    assert printed(capsys, "describe", path, "--layout", "torch") == expected
    assert "layers/0/weight  (4, 2)  (0,)" in expected
    note = "try --layout torch"
    assert printed(capsys, "describe", path, note=note) != expected
    assert f"give a file in it: {path}" in refused(capsys, "describe", tmp_path)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts_are_known_by_name(layout, tmp_path, capsys):
    as_npz(PARAMS, tmp_path / "params.npz")
    text = printed(capsys, "describe", tmp_path / "params.npz", "--layout", layout)
    ready_made = getattr(neuron_optax, layout.upper())
    assert text == described(capsys, PARAMS, ready_made)


def test_a_layout_is_inferred(tmp_path, capsys):
    stacked = {"blocks": {"kernel": jnp.ones((6, 3, 2)), "bias": jnp.ones((6, 2))}}
    as_npz(stacked, tmp_path / "params.npz")
    command = "describe", tmp_path / "params.npz"
    inferred = neuron_optax.infer_layout(stacked)
    text = printed(capsys, *command, "--layout", "infer")
    assert text == described(capsys, stacked, inferred) != printed(capsys, *command)


def test_layers_of_a_large_model_are_described_once(capsys):
    shapes, _ = architecture("llama-7b")
    every = printed(capsys, "describe", "--model", "llama-7b", "--all")
    assert every == described(capsys, shapes)
    head, *rows = printed(capsys, "describe", "--model", "llama-7b").splitlines()
    cells = [row.split(maxsplit=2) for row in rows]
    assert head.split()[:2] == ["leaves", "path"] and len(rows) == 12
    assert sum(int(count) for count, *_ in cells) == len(jax.tree.leaves(shapes))
    key = ["32", "layers_*/attention/key/kernel"]
    assert [key] == [c[:2] for c in cells if "key" in c[1]]
    assert next(row for row in rows if "key" in row)[8:].rstrip() in [
        line.replace("layers_0", "layers_*") for line in every.splitlines()
    ]


def test_three_layers_that_are_alike_are_described_each(tmp_path, capsys):
    for count in (3, 4):
        params = {f"Dense_{n}": PARAMS["Dense_0"] for n in range(count)}
        as_npz(params, tmp_path / "params.npz")
        text = printed(capsys, "describe", tmp_path / "params.npz")
        assert (text == described(capsys, params)) == (count == 3)


def test_the_table_of_strategies_names_each_of_them(capsys):
    text = printed(capsys, "strategies")
    for line in text.splitlines():
        assert line in strategies.__doc__.replace("::", ":")
    first, second = (text.split("  strategy  ")[n] for n in (1, 2))
    assert "adam_mini           mean g**2" in first
    assert "adam_mini           arXiv:2406.16793" in second


def test_one_strategy_is_shown_with_its_arguments(capsys):
    text = printed(capsys, "strategies", "adam_mini")
    assert text.startswith("def adam_mini(\n    learning_rate: ")
    assert "    neurons: NeuronsLike = FLAX,\n" in text
    assert ":\n\nAdam with one second moment per neuron" in text
    assert "\nExample:\n  >>> " in text
    assert "'adam'" in refused(capsys, "strategies", "adam")


@pytest.mark.parametrize("name", PEERS)
def test_the_demonstration_finds_who_agrees_with_torch(name, capsys):
    pytest.importorskip("torch")
    text = printed(capsys, "compare", name, "--steps", "3")
    head, *notes, found, columns = text.splitlines()[:-6]
    rows = text.splitlines()[-6:]
    per_entry = "" if "optax" in name else " with one neuron per entry (PER_ENTRY)"
    assert head.startswith(f"{name}{per_entry} and torch.optim.")
    assert head.endswith("in float64")
    eps_inside_the_root = name == "optax.rmsprop"
    assert found.startswith("part first at step 1" if eps_inside_the_root else "agree")
    assert any("inside the root" in note for note in notes) == eps_inside_the_root
    assert columns.split()[0] == "step" and rows[0].split()[0] == "1"


def test_the_demonstration_runs_in_the_dtype_that_is_asked_for(capsys):
    pytest.importorskip("torch")
    found = {
        dtype: printed(capsys, "compare", "optax.adam", "--dtype", dtype)
        for dtype in ("float64", "float32")
    }
    assert "agree" in found["float64"] and "part first" in found["float32"]


def test_without_torch_the_extra_is_named(capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    assert "neuron-optax[torch]" in refused(capsys, "compare", "adam_mini")


def test_without_flax_a_file_of_flax_is_refused(capsys, monkeypatch, tmp_path):
    as_msgpack(PARAMS, tmp_path / "params.msgpack")
    monkeypatch.setitem(sys.modules, "flax.serialization", None)
    said = refused(capsys, "describe", tmp_path / "params.msgpack")
    assert "params.msgpack: needs a package: " in said and "flax" in said


def test_every_command_has_help_with_an_example_and_the_defaults(capsys):
    for command in ("describe", "plan", "strategies", "compare"):
        with pytest.raises(SystemExit):
            main([command, "--help"])
        text = " ".join(capsys.readouterr().out.split())
        assert f"Example: python -m neuron_optax {command} " in text
        assert "(default: " in text and "default: None" not in text


REFUSED = {  # arguments and what the message says
    "no command": ("", "command"),
    "no path": ("describe", "either a path or --model"),
    "both": ("describe params.npz --model llama-7b", "either a path or --model"),
    "model": ("describe --model llama-8b", "'llama-8b'"),
    "layout": ("describe --model llama-7b --layout tf", "'tf'"),
    "part": ("describe --model llama-7b --at params", "'params', but at embed, head"),
    "peer": ("compare adam", "'adam'"),
    "steps": ("compare adam_mini --steps 0", "'0'"),
}


@pytest.mark.parametrize(("text", "said"), REFUSED.values(), ids=REFUSED)
def test_arguments_that_do_not_fit_are_refused(text, said, capsys):
    assert said in refused(capsys, *text.split())


def header(text):
    return len(text).to_bytes(8, "little") + text


FILES = {  # content and what the message says
    "absent.npz": (None, "no such file or directory"),
    "torch.pt": (b"", "got '.pt' (a pickle runs code when it is read)"),
    "params": (b"", "wanted a directory of Orbax, .npz, .msgpack, .safetensors, got"),
    "text.npz": (b"text", "no archive of NumPy arrays"),
    "text.msgpack": (b"text", ""),
    "text.safetensors": (b"text", "no header of safetensors: "),
    "list.safetensors": (header(b"[1]"), "no header of safetensors: wanted a JSON"),
    "less.safetensors": (header(b'{"w": {}}'), "'w' must have a dtype and a shape"),
    "sizes.safetensors": (
        header(b'{"w": {"dtype": "F32", "shape": [2, -1]}}'),
        "'w' must have a dtype and a shape of sizes that are at least 0, got {",
    ),
}


@pytest.mark.parametrize("name", FILES)
def test_files_that_cannot_be_read_are_refused_by_name(name, tmp_path, capsys):
    content, said = FILES[name]
    if content is not None:
        (tmp_path / name).write_bytes(content)
    message = refused(capsys, "describe", tmp_path / name)
    assert message.startswith(f"{tmp_path / name}: ") and said in message


def test_what_is_pickled_or_holds_no_params_is_refused(tmp_path, capsys):
    np.savez(tmp_path / "objects.npz", kernel=np.array([{}], dtype=object))
    said = refused(capsys, "describe", tmp_path / "objects.npz")
    assert "Object arrays cannot be loaded" in said
    np.savez(tmp_path / "steps.npz", step=np.arange(3))
    said = refused(capsys, "describe", tmp_path / "steps.npz")
    assert "no floating or complex leaves" in said


def test_two_names_of_one_path_are_refused(tmp_path, capsys):
    one = np.ones(2)
    for names in (("a.b", "a/b"), ("a/value", "a/raw_value")):
        np.savez(tmp_path / "twice.npz", **dict.fromkeys(names, one))
        said = refused(capsys, "describe", tmp_path / "twice.npz")
        assert all(repr(name) in said for name in names)
    np.savez(tmp_path / "once.npz", **{"a/value": one, "a": one, "b/value": one})
    assert "a/value" in printed(capsys, "describe", tmp_path / "once.npz")


def test_records_are_no_params(tmp_path, capsys):
    records = np.zeros(3, [("x", "f4"), ("y", "f4")])
    np.savez(tmp_path / "records.npz", records=records)
    assert "no floating" in refused(capsys, "describe", tmp_path / "records.npz")
    np.savez(tmp_path / "more.npz", records=records, w=np.ones(3))
    assert "records" not in printed(capsys, "describe", tmp_path / "more.npz")


def test_the_process_ends_with_code_2_and_no_traceback():
    command = [sys.executable, "-m", "neuron_optax", "describe", "absent.npz"]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ended.returncode == 2 and not ended.stdout
    assert ended.stderr.startswith("usage: ") and "Traceback" not in ended.stderr
    assert ended.stderr.endswith("absent.npz: no such file or directory\n")
