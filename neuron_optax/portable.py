"""Steps that `jax.export` writes to bytes: the classes of their states get names.

``serialize`` and ``deserialize`` need flatbuffers (extra ``aot``).
"""

import contextlib

import optax
from jax import export

import neuron_optax.strategies  # all states of ours are defined once this is imported

PACKAGES = neuron_optax.__name__, optax.__name__


def register_states() -> None:
    """Let `jax.export` write and read steps whose states are ours and Optax's.

    Call it before ``serialize``, and before ``deserialize`` in the process that reads.
    Every NamedTuple that the two packages have defined is registered under the name of
    its package and its own, ``optax.EmptyState`` for example. One that the caller has
    registered before keeps its name; both processes must agree on it.

    Note:
      Nothing is registered at import: in a process a class can have one name, and a
      second registration of Optax's would be refused to the caller. Classes of others
      take ``jax.export.register_namedtuple_serialization``.

    Example:
      >>> import jax
      >>> from neuron_optax import adam_mini
      >>> optimizer, params = adam_mini(1e-3), {"kernel": jax.numpy.ones((3, 2))}
      >>> state = optimizer.init(params)
      >>> step = export.export(jax.jit(optimizer.update), platforms=["cpu", "tpu"])
      >>> exported = step(params, state, params)
      >>> register_states()
      >>> export.deserialize(exported.serialize()).in_tree == exported.in_tree
      True
    """
    for kind in tuple.__subclasses__():
        package = kind.__module__.partition(".")[0]
        if package in PACKAGES and hasattr(kind, "_fields"):
            name = f"{package}.{kind.__name__}"
            with contextlib.suppress(ValueError):  # it has a name already
                export.register_namedtuple_serialization(kind, serialized_name=name)
