"""Shapes of the leaves of what was saved to a file or a directory, by their paths."""

import importlib
import json
import pathlib
import re
import zipfile
from collections.abc import Iterable, Sequence
from typing import Any

import jax
import numpy as np

from neuron_optax.trees import named_leaves

Shapes = dict[str, jax.ShapeDtypeStruct]
DIRECTORY = "a directory of Orbax"
VARIABLE = re.compile("/(raw_)?value$")  # what nnx adds to a path
Found = Iterable[tuple[str, tuple[int, ...], bool]]  # name, shape, whether it is floats


def saved_shapes(path: pathlib.Path) -> Shapes:
    """Return the shapes of the floating and complex leaves of a checkpoint, by path.

    Nothing is unpickled. Of what is not needed for the shapes, ``.npz`` and
    ``.msgpack`` are read, the two others not.

    Args:
      path: a directory written by Orbax (needs orbax-checkpoint), or a file: ``.npz``,
        ``.msgpack`` by ``flax.serialization`` (needs flax) or ``.safetensors``.

    Returns:
      A dict of float32, whatever the dtypes were, by paths as `describe` prints them.
      The ``value`` that Flax's nnx adds to the path of every Variable is left out.

    Raises:
      ValueError: for another kind of file, for one that holds no such leaf, and for
        two names that are one path.
      OSError: if it cannot be read.
      ImportError: if the package that wrote it is not there.

    Note:
      A file that is cut off or of another kind than its suffix says raises as its
      reader does.

    Example:
      >>> import tempfile
      >>> with tempfile.TemporaryDirectory() as folder:
      ...     path = pathlib.Path(folder) / "params.npz"
      ...     np.savez(path, **{"Dense_0.kernel": np.ones((3, 2)), "step": np.array(7)})
      ...     {path: of.shape for path, of in saved_shapes(path).items()}
      {'Dense_0/kernel': (3, 2)}
    """
    if not path.exists():
        raise FileNotFoundError("no such file or directory")
    kind = DIRECTORY if path.is_dir() else path.suffix
    if files := kind == DIRECTORY and sorted(path.glob("*.safetensors")):
        shown = ", ".join(str(file) for file in files)
        raise ValueError(
            f"a directory that Orbax did not write; give a file in it: {shown}"
        )
    if kind not in READERS:
        why = " (a pickle runs code when it is read)" if kind in PICKLES else ""
        raise ValueError(f"wanted {', '.join(READERS)}, got {kind!r}{why}")
    found = [(name, shape) for name, shape, floats in READERS[kind](path) if floats]
    if not found:
        raise ValueError("no floating or complex leaves in it")
    blanks = [jax.ShapeDtypeStruct(shape, np.float32) for _, shape in found]
    return dict(zip(_paths([name for name, _ in found]), blanks, strict=True))


def _paths(names: Sequence[str]) -> list[str]:
    """Return the path of each name, which no other name has."""
    paths = [path for name in names for path, _ in named_leaves({name: 0})]
    if all(VARIABLE.search(path) for path in paths):  # as nnx saves them
        paths = [VARIABLE.sub("", path) for path in paths]
    first = {}
    for name, path in zip(names, paths, strict=True):
        if path in first:
            raise ValueError(f"{first[path]!r} and {name!r} are both the path {path!r}")
        first[path] = name
    return paths


def _npz(path: pathlib.Path) -> Found:
    if not zipfile.is_zipfile(path):
        raise ValueError("no archive of NumPy arrays")
    with np.load(path, allow_pickle=False) as arrays:
        return [_array(name, arrays[name]) for name in arrays]


def _msgpack(path: pathlib.Path) -> Found:
    restore = importlib.import_module("flax.serialization").msgpack_restore
    leaves = named_leaves(restore(path.read_bytes()))
    return [_array(name, np.asarray(leaf)) for name, leaf in leaves]


def _safetensors(path: pathlib.Path) -> Found:
    """Read the header: its length in 8 bytes, then JSON."""
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        text = file.read(min(length, path.stat().st_size))
    try:
        header = json.loads(text)
    except ValueError as error:
        raise ValueError(f"no header of safetensors: {error}") from error
    if not isinstance(header, dict) or len(text) < length:
        raise ValueError("no header of safetensors: wanted a JSON object of its length")
    header.pop("__metadata__", None)
    return [_entry(name, of) for name, of in header.items()]


def _entry(name: str, of: Any) -> tuple[str, tuple[int, ...], bool]:
    match of:
        case {"dtype": str(dtype), "shape": [*shape]} if all(
            type(size) is int and size >= 0 for size in shape
        ):
            return name, tuple(shape), re.match("F|BF|C", dtype) is not None
    raise ValueError(
        f"no header of safetensors: {name!r} must have a dtype and a shape of sizes "
        f"that are at least 0, got {of!r}"
    )


def _orbax(path: pathlib.Path) -> Found:
    checkpoints = importlib.import_module("orbax.checkpoint")
    item = path / "default"  # where a CheckpointManager puts it
    path = item if item.is_dir() else path
    if not (path / "_METADATA").exists():
        inside = sorted(child.name for child in path.iterdir() if child.is_dir())
        raise ValueError(f"no checkpoint of Orbax; the directories in it: {inside}")
    with checkpoints.StandardCheckpointer() as reader:
        tree = reader.metadata(path.absolute()).item_metadata.tree
    leaves = named_leaves(tree)
    return [_array(name, leaf) for name, leaf in leaves if hasattr(leaf, "shape")]


def _array(name: str, array: Any) -> tuple[str, tuple[int, ...], bool]:
    """Tell floats: NumPy does not know bfloat16 and saves it as plain bytes (V)."""
    dtype = np.dtype(array.dtype)
    floats = dtype.kind in "fcV" and dtype.fields is None  # which a record has
    return name, tuple(array.shape), floats


PICKLES = ".pt", ".pth", ".bin", ".ckpt", ".pkl", ".pickle"
READERS = {
    DIRECTORY: _orbax,
    ".npz": _npz,
    ".msgpack": _msgpack,
    ".safetensors": _safetensors,
}
