"""Bytes of an optimizer's state, in all and on each device, from shapes alone."""

import dataclasses
import math
import warnings
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import optax
from jax.sharding import AbstractMesh, Mesh, NamedSharding

from neuron_optax.sharding import state_specs

PARAMETERS = "parameters"
_HELD = optax.GradientTransformation(lambda params: params, optax.identity().update)
_UNITS = "B", "kB", "MB", "GB", "TB", "PB"


class PlanRow(NamedTuple):
    """Bytes that one strategy keeps in its state.

    Attributes:
      total: bytes of the whole state, whatever is replicated counted once.
      per_device: bytes on each device, what is replicated counted on every one.
      per_parameter: ``total`` over the number of parameters, in bytes.
      relative: ``total`` over the bytes of the parameters.

    Example:
      >>> params = jax.ShapeDtypeStruct((256, 1024), "bfloat16")
      >>> row = plan(params, {"momentum": optax.trace(0.9)}).rows["momentum"]
      >>> row.total, row.per_parameter, row.relative
      (524288, 2.0, 1.0)
    """

    total: int
    per_device: int
    per_parameter: float
    relative: float


@dataclasses.dataclass(frozen=True)
class Plan:
    """What `plan` found; ``str`` of it is a table.

    Attributes:
      rows: by name, first those of the parameters themselves.
      parameters: how many there are.
      mesh: number of devices along each axis of the mesh.

    Example:
      >>> params = jax.ShapeDtypeStruct((256, 1024), "float32")
      >>> list(plan(params, {"momentum": optax.trace(0.9)}).rows)
      ['parameters', 'momentum']
    """

    rows: Mapping[str, PlanRow]
    parameters: int
    mesh: Mapping[str, int]

    def __str__(self) -> str:
        devices = math.prod(self.mesh.values())
        axes = ", ".join(f"{axis}={size}" for axis, size in self.mesh.items())
        where = f"{devices:,} devices ({axes})" if devices > 1 else "1 device"
        lines = [["", "total", "per device", "bytes/parameter", "of parameters"]]
        for name, row in self.rows.items():
            sizes = _decimal(row.total), _decimal(row.per_device)
            ratios = f"{row.per_parameter:.4f}", f"{row.relative:.2%}"
            lines.append([name, *sizes, *ratios])
        widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
        table = [
            "  ".join([name.ljust(widths[0]), *map(str.rjust, cells, widths[1:])])
            for name, *cells in lines
        ]
        head = f"{self.parameters:,} parameters on {where}, 1 kB = 1000 B"
        return "\n".join([head, *table])


def state_bytes(optimizer: optax.GradientTransformation, params: Any) -> int:
    """Return the bytes of the state of an optimizer, without allocating it.

    Args:
      optimizer: any transformation.
      params: tree of arrays or ``jax.ShapeDtypeStruct``.

    Returns:
      The bytes of one copy of ``optimizer.init(params)``.

    Raises:
      TypeError: as ``optimizer.init``.
      ValueError: as ``optimizer.init``.

    Example:
      >>> from neuron_optax import adam_mini
      >>> params = {"kernel": jax.ShapeDtypeStruct((1000, 10), "float32")}
      >>> state_bytes(optax.adam(1e-3), params)  # two moments and a step
      80004
      >>> state_bytes(adam_mini(1e-3), params)  # one moment, 20 numbers and two steps
      40088
    """
    return sum(leaf.size * leaf.dtype.itemsize for leaf in _leaves(optimizer, params))


def plan(
    params: Any,
    strategies: Mapping[str, optax.GradientTransformation],
    param_specs: Any = None,
    mesh: Mesh | AbstractMesh | None = None,
) -> Plan:
    """Return the bytes per device of every strategy's state, from shapes alone.

    Nothing is allocated and, with an ``AbstractMesh``, no devices are needed. The state
    is sharded as `state_specs` says. Gradients, activations and temporaries are not
    counted, nor what is left over where an allocator rounds up.

    Args:
      params: tree of arrays or ``jax.ShapeDtypeStruct``.
      strategies: transformations by the name of their row.
      param_specs: as of `state_specs`; ``None`` if every device has all params.
      mesh: where ``param_specs`` lie; ``None`` for the mesh of their ``NamedSharding``,
        if any.

    Returns:
      A `Plan`, whose first row is of the parameters; ``print`` it.

    Raises:
      TypeError: if ``strategies`` is no mapping; as the ``init`` of a strategy, with
        its name in a note.
      ValueError: if ``params`` have no entries, a strategy is named ``parameters``, or
        ``param_specs`` have no mesh; as `state_specs`; as the ``init`` of a strategy,
        with its name in a note.

    Example:
      >>> from jax.sharding import PartitionSpec as P
      >>> from neuron_optax import adam_mini
      >>> params = {"kernel": jax.ShapeDtypeStruct((4096, 1024), "float32")}
      >>> strategies = {"adam": optax.adam(1e-3), "adam_mini": adam_mini(1e-3)}
      >>> mesh = AbstractMesh((16, 4), ("fsdp", "tp"))
      >>> print(plan(params, strategies, {"kernel": P("fsdp", "tp")}, mesh))
      4,194,304 parameters on 64 devices (fsdp=16, tp=4), 1 kB = 1000 B
                     total  per device  bytes/parameter  of parameters
      parameters  16.78 MB   262.14 kB           4.0000        100.00%
      adam        33.55 MB   524.29 kB           8.0000        200.00%
      adam_mini   16.79 MB   264.20 kB           4.0020        100.05%
    """
    if not isinstance(strategies, Mapping):
        kind = type(strategies).__name__
        raise TypeError(f"strategies must map names to transformations, got a {kind}")
    if PARAMETERS in strategies:
        raise ValueError(f"strategies: {PARAMETERS!r} names the row of the params")
    count = sum(leaf.size for leaf in _leaves(_HELD, params))
    if not count:
        raise ValueError("params must have entries, got a tree of none")
    if param_specs is not None:
        mesh = _shardings(_HELD, params, param_specs, mesh)[0].mesh
    sizes = {
        name: _sizes(name, optimizer, params, param_specs, mesh)
        for name, optimizer in {PARAMETERS: _HELD, **strategies}.items()
    }
    held, _ = sizes[PARAMETERS]
    rows = {
        name: PlanRow(total, per_device, total / count, total / held)
        for name, (total, per_device) in sizes.items()
    }
    return Plan(rows, count, {} if mesh is None else dict(mesh.shape))


def _leaves(optimizer: optax.GradientTransformation, params: Any) -> list[Any]:
    return jax.tree.leaves(jax.eval_shape(optimizer.init, params))


def _shardings(optimizer, params, param_specs, mesh) -> list[NamedSharding]:
    shardings = jax.tree.leaves(state_specs(optimizer, params, param_specs, mesh))
    if not all(isinstance(sharding, NamedSharding) for sharding in shardings):
        raise ValueError("param_specs need a mesh, got None")
    return shardings


def _sizes(name, optimizer, params, param_specs, mesh) -> tuple[int, int]:
    """Return the bytes of a state, in all and per device."""
    try:
        leaves = _leaves(optimizer, params)
    except (TypeError, ValueError) as error:
        error.add_note(f"strategy {name!r}")
        raise
    total = sum(leaf.size * leaf.dtype.itemsize for leaf in leaves)
    if param_specs is None:
        return total, total
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        shardings = _shardings(optimizer, params, param_specs, mesh)
    for warning in caught:
        warnings.warn(f"{name}: {warning.message}", warning.category, stacklevel=3)
    shards = (
        math.prod(sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize
        for leaf, sharding in zip(leaves, shardings, strict=True)
    )
    return total, sum(shards)


def _decimal(size: int) -> str:
    power = min((len(str(size)) - 1) // 3, len(_UNITS) - 1)
    return f"{size / 1000**power:.2f} {_UNITS[power]}"
