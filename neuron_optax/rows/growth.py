"""Which numbers of a state are made of a table's: its axes grow when the table does."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from neuron_optax.trees import named_leaves


class Growth(NamedTuple):
    """A leaf of a state: how its axes grow with those of the tables."""

    path: str
    shape: tuple[int, ...]
    by: tuple[int, ...]

    @property
    def grows(self) -> bool:
        """Whether it is made of a table's shape."""
        return any(self.by)

    @property
    def has_rows(self) -> bool:
        """Whether its first axis, and no other, is the rows of a table."""
        return self.by[:1] == (1,) and 1 not in self.by[1:]


def growth(
    init: Callable[[Any], optax.OptState], params: Any, state: Any, row_aware: type
) -> list[Growth]:
    """List how the leaves of a state that is not row-aware grow with the tables.

    The tables grow by one row and two columns, on paper alone, and so do the axes of
    the state that are made of theirs: which of them shows, even where both are equal.

    Args:
      init: makes the state.
      params: the tables.
      state: ``init(params)``.
      row_aware: the class of states to pass over.
    """

    def taller(leaf):
        shape = [n + 2 - (axis == 0) for axis, n in enumerate(np.shape(leaf))]
        return jax.ShapeDtypeStruct(tuple(shape), jnp.result_type(leaf))

    tall = jax.eval_shape(init, jax.tree.map(taller, params))
    outside = lambda node: isinstance(node, row_aware)
    pairs = zip(
        named_leaves(state, is_leaf=outside),
        jax.tree.leaves(tall, is_leaf=outside),
        strict=True,
    )
    return [
        Growth(path, np.shape(leaf), tuple(np.subtract(grown.shape, np.shape(leaf))))
        for (path, leaf), grown in pairs
        if not outside(leaf)
    ]
