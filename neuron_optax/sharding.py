"""Where the state of an optimizer lies when its params lie on many devices."""

import contextlib
import math
import warnings
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import optax
from jax.sharding import (
    AbstractMesh,
    AxisType,
    Mesh,
    NamedSharding,
    PartitionSpec,
)

from neuron_optax.boxes import unbox
from neuron_optax.trees import map_named, named_leaves

AnyMesh = Mesh | AbstractMesh
Names = tuple[str, ...]  # of mesh axes
WHOLE = "whole axis "  # with its number: the name of what has none in a spec
UNKNOWN = object()
SHOWN = 10  # leaves in a report


def state_specs(
    optimizer: optax.GradientTransformation | optax.MultiSteps,
    params: Any,
    param_specs: Any,
    mesh: AnyMesh | None = None,
) -> Any:
    """Return how every leaf of an optimizer's state is sharded, given its params'.

    The axes of the params are followed through ``optimizer.init`` by their types, so
    that any chain of any Optax transformations will do: an axis of the state that was
    one of a param has its mesh axes, one that was reduced to length 1 has none.

    Args:
      optimizer: any transformation.
      params: arrays or ``ShapeDtypeStruct``.
      param_specs: a ``PartitionSpec`` or ``NamedSharding`` for every leaf of
        ``params``, or a prefix of that tree.
      mesh: where they lie; ``None`` for the mesh of the ``NamedSharding``, if any.

    Returns:
      A tree like ``optimizer.init(params)`` of ``PartitionSpec``, or, given a mesh, of
      ``NamedSharding`` in the default memory: the ``out_shardings`` of a jitted
      ``init``. An axis is replicated, and a warning names its leaf (the first ten), if
      ``init`` did not keep an axis of a param there, or if its mesh axes do not divide
      it. Blocks are shorter than their axis: without a mesh, whose size is not known
      then, they are replicated.

    Raises:
      ValueError: naming the leaf, for a spec with more axes than the leaf or with mesh
        axes that the mesh lacks, that stand twice or do not divide; for shardings on
        several meshes; as ``optimizer.init``.

    Example:
      >>> from jax.sharding import PartitionSpec as P
      >>> from neuron_optax import adam_mini
      >>> params = {"kernel": jax.ShapeDtypeStruct((512, 256), "float32")}
      >>> specs = state_specs(adam_mini(1e-3), params, {"kernel": P("fsdp", "tp")})
      >>> specs[0].memory["kernel"] == P(None, "tp")
      True
      >>> specs[0].direction.ema["kernel"] == P("fsdp", "tp")
      True
    """
    plain, given = unbox(params), unbox(param_specs)
    specs = jax.tree.broadcast(given, plain, is_leaf=_is_spec)
    mesh = _mesh_of(specs) if mesh is None else mesh
    named = lambda path, param, spec: _named(path, param, spec, mesh)
    specs = map_named(named, plain, specs)
    divides = _division(plain, specs, mesh)
    state = jax.eval_shape(optimizer.init, params)
    followed = _follow(optimizer.init, params, specs, state)
    sharded, lost = [], []
    for (path, leaf), axes in zip(named_leaves(state), followed, strict=True):
        sizes = zip(axes, leaf.shape, strict=True)
        entries = [_entry(names, size, divides) for names, size in sizes]
        if unknown := [a for a, entry in enumerate(entries) if entry is UNKNOWN]:
            lost.append(f"axes {unknown} of {path} {leaf.shape}")
        spec = _spec(None if entry is UNKNOWN else entry for entry in entries)
        sharded.append(spec if mesh is None else NamedSharding(mesh, spec))
    if lost:
        rest = f" and {len(lost) - SHOWN} more" * (len(lost) > SHOWN)
        report = f"state_specs replicates {', '.join(lost[:SHOWN])}{rest}"
        warnings.warn(report, stacklevel=2)
    return jax.tree.unflatten(jax.tree.structure(state), sharded)


def _follow(
    init: Callable[[Any], Any], params: Any, specs: Any, state: Any
) -> list[list[Names]]:
    """Return the names that each axis of each leaf of ``init(params)`` has by type."""
    names = sorted({n for s in jax.tree.leaves(specs) for e in s for n in _names(e)})
    device = np.array(jax.local_devices()[:1]).reshape([1] * len(names))
    mesh = Mesh(device, names, axis_types=(AxisType.Explicit,) * len(names))

    def typed(param, spec):
        shape, dtype = np.shape(param), jax.dtypes.result_type(param)
        return jax.ShapeDtypeStruct(shape, dtype, sharding=NamedSharding(mesh, spec))

    def followed(tree, leaves):
        with jax.set_mesh(mesh):
            found = jax.eval_shape(init, jax.tree.unflatten(tree, leaves))
        return [
            [_names(entry) for entry in _filled(leaf.sharding, leaf.ndim)]
            for leaf in jax.tree.leaves(found)
        ]

    leaves = jax.tree.leaves(params)
    whole = [typed(leaf, PartitionSpec()) for leaf in leaves]
    cut = list(map(typed, leaves, jax.tree.leaves(specs)))
    boxed, plain = (jax.tree.structure(tree) for tree in (params, unbox(params)))
    # Shapes are fine; errors are those of types, which JAX does not make public.
    for tree in (boxed, plain):
        with contextlib.suppress(Exception):
            return followed(tree, cut)
    axes = [[()] * leaf.ndim for leaf in jax.tree.leaves(state)]
    for n, leaf in enumerate(cut):
        with contextlib.suppress(Exception):
            alone = followed(boxed, [*whole[:n], leaf, *whole[n + 1 :]])
            axes = [list(map(max, *pair)) for pair in zip(axes, alone, strict=True)]
    return axes


def _entry(names: Names, size: int, divides: Callable[[Names, int], bool]) -> Any:
    """Return the entry of a spec for an axis of a state, or that it is unknown."""
    whole = [name.startswith(WHOLE) for name in names]
    if size <= 1 or (names and all(whole)):
        return None
    if not names or any(whole) or not divides(names, size):
        return UNKNOWN
    return names[0] if len(names) == 1 else names


def _division(
    params: Any, specs: Any, mesh: AnyMesh | None
) -> Callable[[Names, int], bool]:
    """Return whether mesh axes divide a size, which without a mesh some axis shows."""
    shown = {
        (_names(entry), size)
        for param, spec in zip(*map(jax.tree.leaves, (params, specs)), strict=True)
        for entry, size in zip(spec, np.shape(param), strict=True)
    }
    if mesh is None:
        return lambda names, size: (names, size) in shown
    return lambda names, size: _divides(mesh, names, size)


def _divides(mesh: AnyMesh, names: Names, size: int) -> bool:
    return size % math.prod(mesh.shape[name] for name in names) == 0


def _named(path: str, param: Any, spec: Any, mesh: AnyMesh | None) -> PartitionSpec:
    """Return the spec of a param in which every axis has a name."""
    rank = np.ndim(param)
    said = spec.spec if isinstance(spec, NamedSharding) else spec
    free = PartitionSpec.UNCONSTRAINED
    if not isinstance(said, PartitionSpec) or len(said) > rank or free in said:
        raise ValueError(
            f"{path}: param_specs must have a PartitionSpec of at most {rank} axes for "
            f"the shape {np.shape(param)}, got {spec}"
        )
    names = [name for entry in said for name in _names(entry)]
    if len(set(names)) < len(names):
        raise ValueError(
            f"{path}: a mesh axis may cut one axis, got {said} for {names}"
        )
    if mesh is not None:
        _check(path, said, np.shape(param), mesh)
    entries = enumerate([*said, *[None] * (rank - len(said))])
    return PartitionSpec(*(entry or f"{WHOLE}{axis}" for axis, entry in entries))


def _check(
    path: str, said: PartitionSpec, shape: tuple[int, ...], mesh: AnyMesh
) -> None:
    """Refuse the spec of a param that its mesh lacks or that does not divide it."""
    for entry, size in zip(said, shape, strict=False):
        names = _names(entry)
        if not mesh.shape.keys() >= set(names) or not _divides(mesh, names, size):
            raise ValueError(
                f"{path}: {entry!r} in {said} must be of {dict(mesh.shape)} and divide "
                f"the axis of length {size}"
            )


def _mesh_of(specs: Any) -> AnyMesh | None:
    meshes = {s.mesh for s in jax.tree.leaves(specs) if isinstance(s, NamedSharding)}
    if len(meshes) > 1:
        raise ValueError(f"param_specs must lie on one mesh, got {meshes}")
    return meshes.pop() if meshes else None


def _is_spec(node: Any) -> bool:
    return node is None or isinstance(node, PartitionSpec | NamedSharding)


def _names(entry: Any) -> Names:
    return (entry,) if isinstance(entry, str) else tuple(entry or ())


def _filled(sharding, rank):
    spec = () if sharding is None else sharding.spec
    return [*spec, *[None] * (rank - len(spec))]


def _spec(entries):
    """Return a spec without the None at its end."""
    entries = list(entries)
    while entries and entries[-1] is None:
        entries.pop()
    return PartitionSpec(*entries)
