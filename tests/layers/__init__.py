"""Every layer of the four libraries, small, with what each of its weights computes."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax


class Layer(NamedTuple):
    """One layer with random parameters.

    Attributes:
      params: the tree a user hands to Optax.
      outputs: ``outputs(params)``, the pre-activation that each weight computes, by the
        beginning of the weight's path; the longest that fits counts, ``""`` fits all.
    """

    params: Any
    outputs: Callable[[Any], Mapping[str, jax.Array]]
