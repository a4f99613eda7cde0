"""Shapes of the leaves of what was saved to a file or a directory, by their paths."""

import importlib
import json
import pathlib
import re
import zipfile
from collections.abc import Iterable
from typing import Any

import jax
import numpy as np

from neuron_optax.trees import named_leaves

Shapes = dict[str, jax.ShapeDtypeStruct]
DIRECTORY = "a directory of Orbax"
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
      The ``value`` that Flax's nnx adds to the path of a Variable is left out.

    Raises:
      ValueError: for another kind of file, and for one that holds no such leaf.
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
    if kind not in READERS:
        pickled = " (a pickle runs code when it is read)" * (kind in PICKLES)
        raise ValueError(f"wanted {', '.join(READERS)}, got {kind!r}{pickled}")
    found = {name: shape for name, shape, floats in READERS[kind](path) if floats}
    if not found:
        raise ValueError("no floating or complex leaves in it")
    blank = {name: jax.ShapeDtypeStruct(of, np.float32) for name, of in found.items()}
    plain = lambda name: re.sub(r"/(raw_)?value$", "", name)
    return {plain(name): shape for name, shape in named_leaves(blank)}


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
        header = json.loads(file.read(min(length, path.stat().st_size)))
    header.pop("__metadata__", None)
    return [
        (name, tuple(of["shape"]), re.match("F|BF|C", of["dtype"]) is not None)
        for name, of in header.items()
    ]


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
    return name, tuple(array.shape), np.dtype(array.dtype).kind in "fcV"


PICKLES = ".pt", ".pth", ".bin", ".ckpt", ".pkl", ".pickle"
READERS = {
    DIRECTORY: _orbax,
    ".npz": _npz,
    ".msgpack": _msgpack,
    ".safetensors": _safetensors,
}
