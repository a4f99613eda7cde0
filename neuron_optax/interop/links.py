"""Which leaf of a tree every tensor of a torch module is, none left on either side."""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import torch

from neuron_optax.interop.layers import WANTED, Layer, Wanted
from neuron_optax.interop.modules import Source, layers_of, tensors_of, tied_to
from neuron_optax.interop.moves import Link, Part, Shape, same

Names = Mapping[str, str | None]


class Links(NamedTuple):
    """How the tensors of torch and the leaves of JAX belong together.

    Attributes:
      links: one of each leaf.
      zeros: parts of tensors that have no leaf and must be zero.
      tied: of every tensor that torch has under several names, one that has a leaf.
    """

    links: list[Link]
    zeros: list[Part]
    tied: dict[str, str]


def find_links(
    module: Source,
    tensors: Mapping[str, torch.Tensor],
    leaves: Mapping[str, Any],
    names: Names | None,
    transpose_kernel: bool | None,
) -> Links:
    """Find the leaf of every tensor and the tensors of every leaf.

    Raises:
      ValueError: naming what is left on either side, or does not fit.
    """
    paths, tensors, ties = _chosen(module, tensors, names or {})
    shapes = {path: tuple(leaf.shape) for path, leaf in leaves.items()}
    layers = layers_of(module, tensors)
    sought = [
        want for at in layers for want in _sought(at, shapes, paths, transpose_kernel)
    ]
    links = [
        _link(want.leaf, want, tensors, shapes)
        for want in sought
        if want.leaf in shapes
    ]
    zeros = [part for want in sought if want.leaf is None for part in want.pieces[0]]
    tied = {}
    linked = {name for link in links for name in link.names}
    for name, first in ties.items():
        held = [other for other in linked if ties.get(other) == first]
        tied.update({name: min(held)} if held else {})
    absent = _absent(sought, tensors, shapes)
    absent = {name: path for name, path in absent.items() if name not in tied}
    _check_left(absent, shapes, links)
    return Links(links, zeros, tied)


def _chosen(
    module: Source, tensors: Mapping[str, torch.Tensor], names: Names
) -> tuple[dict[str, str], dict[str, torch.Tensor], dict[str, str]]:
    """Return paths by name, the tensors that have a leaf, and which of all are tied."""
    whole = tensors_of(module)
    _check_names(names, layers_of(module, whole), whole)
    paths = {key: path for key, path in names.items() if path is not None}
    chosen = {k: v for k, v in tensors.items() if k in paths or k not in names}
    return paths, chosen, tied_to(tensors)


def _absent(
    sought: list[Wanted], names: Iterable[str], shapes: Mapping[str, Shape]
) -> dict[str, str | None]:
    """Return the tensors without a leaf and the path of the leaf, if it is known."""
    parts = [(want.leaf, *part) for want in sought for p in want.pieces for part in p]
    absent = dict.fromkeys(set(names) - {name for _, name, _ in parts})
    return absent | {
        name: path for path, name, _ in parts if path is not None and path not in shapes
    }


def _sought(
    layer: Layer,
    shapes: Mapping[str, Shape],
    names: Mapping[str, str],
    kernel: bool | None,
) -> Iterator[Wanted]:
    """Yield what a layer looks for, with whole paths and torch's whole names."""
    if layer.kind:
        path = _path(layer.name, names)
        layer = layer._replace(path=path)
        lead = f"{path}/" if path else ""
        below = {p[len(lead) :]: s for p, s in shapes.items() if p.startswith(lead)}
        for want in WANTED[layer.kind](layer, below, kernel):
            pieces = [[(layer.full(n), rows) for n, rows in p] for p in want.pieces]
            leaf = None if want.leaf is None else f"{lead}{want.leaf}"
            yield Wanted(leaf, tuple(map(tuple, pieces)), want.move)
    for tensor in map(layer.full, layer.shapes):
        if not layer.kind and tensor in names:
            yield Wanted(names[tensor], (((tensor, ...),),), same)


def _link(
    path: str,
    want: Wanted,
    tensors: Mapping[str, torch.Tensor],
    shapes: Mapping[str, Shape],
) -> Link:
    """Link a leaf to its tensors; refuse shapes that do not fit."""
    heads = [tensors[name].shape for (name, _), *_ in want.pieces]
    counts = [
        shape[0] if rows is ... else rows.stop - rows.start
        for shape, ((_, rows), *_) in zip(heads, want.pieces, strict=True)
        if len(shape)
    ]
    source = (sum(counts), *heads[0][1:]) if counts else ()
    shape, came = shapes[path], [name for p in want.pieces for name, _ in p]
    try:
        move = want.move(source, shape)
    except ValueError as error:
        raise ValueError(f"{came[0]} for {path}: {error}") from error
    if move.target != shape:
        raise ValueError(
            f"{path}: {came[0]} of shape {source} fits a leaf of shape "
            f"{move.target}, got {shape}"
        )
    return Link(path, want.pieces, move)


def _path(name: str, names: Mapping[str, str]) -> str:
    """Return the path of a module, or of the nearest around it that has one."""
    around = [key for key in names if _covers(key, name)]
    if not around:
        return name.replace(".", "/")
    nearest = max(around, key=len)
    rest = name[len(nearest) :].strip(".").replace(".", "/")
    return "/".join(filter(None, (names[nearest].replace(".", "/"), rest)))


def _covers(key: str, name: str) -> bool:
    return not key or name == key or name.startswith(f"{key}.")


def _check_names(names: Names, layers: list[Layer], tensors: Iterable[str]) -> None:
    """Refuse names that no layer, and no tensor of a layer not known, has."""
    known = [layer.name for layer in layers]
    known += [at.full(name) for at in layers if not at.kind for name in at.shapes]
    for key, path in names.items():
        if path is None and key not in tensors:
            raise ValueError(
                f"names: None is for one tensor of torch, and {key!r} is none of "
                f"{list(tensors)}"
            )
        if path is not None and not any(_covers(key, name) for name in known):
            raise ValueError(f"names: torch has no module {key!r}, but {known}")


def _check_left(
    absent: Mapping[str, str | None], shapes: Mapping[str, Shape], links: list[Link]
) -> None:
    """Refuse tensors without a leaf and leaves without a tensor, or with several."""
    paths = [link.path for link in links]
    if twice := sorted({path for path in paths if paths.count(path) > 1}):
        raise ValueError(f"leaves that several torch tensors are for: {twice}")
    alone = sorted(shapes.keys() - set(paths))
    if absent or alone:
        tensors = [
            f"{name} (not known)" if path is None else f"{name} (for {path!r})"
            for name, path in sorted(absent.items())
        ]
        raise ValueError(
            f"torch tensors without a leaf: {tensors}; leaves without a torch tensor: "
            f"{alone}; `names` says which module is which, and of a tensor that is not "
            "known, by its own name, which leaf it is: a path, or None if JAX has none"
        )
