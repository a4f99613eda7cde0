"""Rules that find the neurons of every leaf of a tree by its path and rank.

Axes follow from path and shape alone; see `trees` for the paths.
"""

import dataclasses
import re
from collections.abc import Collection, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np

from neuron_optax.axes.neurons import Axes, MatrixAxes, Neurons, as_axes, resolve
from neuron_optax.trees import named_leaves


class Rule(NamedTuple):
    """Neurons of the leaves whose path has ``pattern`` in it, if of one of ``ranks``.

    Example:
      >>> Rule(r"query/kernel$", Neurons((1, 2)), ranks=(3,)).pattern
      'query/kernel$'
    """

    pattern: str
    neurons: Neurons | MatrixAxes
    ranks: Collection[int] | None = None


@dataclasses.dataclass(frozen=True)
class Layout:
    """Rules that find the neurons of every leaf by its path; the first match wins.

    Leaves of rank 0 and 1 that match no rule have one neuron per entry.

    Attributes:
      rules: tried in order; a pattern is searched in the path (``re.search``).
      fallback: neurons of leaves of rank 2 and more that match no rule.
      undecided: paths that `infer_layout` could not decide.

    Raises:
      ValueError: if a pattern is no regular expression.
      TypeError: if a rule or the fallback gives no neurons.

    Example:
      >>> layout = Layout(rules=(Rule(r"table$", Neurons(output=(0,))),))
      >>> layout.axes("table", (100, 8)).fan_in, layout.axes("kernel", (3, 2)).fan_in
      ((1,), (0,))
    """

    rules: tuple[Rule, ...] = ()
    fallback: Neurons | MatrixAxes = dataclasses.field(default_factory=Neurons)
    undecided: tuple[str, ...] = ()

    def __post_init__(self):
        for rule in self.rules:
            try:
                re.compile(rule.pattern)
            except re.error as error:
                raise ValueError(f"layout rule {rule.pattern!r}: {error}") from error
        named = {f"rule {rule.pattern!r}": rule.neurons for rule in self.rules}
        for place, neurons in (named | {"fallback": self.fallback}).items():
            if not isinstance(neurons, Neurons | MatrixAxes):
                raise TypeError(f"layout {place}: not Neurons, {neurons!r}")

    def override(self, rules: Mapping[str, Neurons | MatrixAxes]) -> "Layout":
        """Return a layout that tries ``rules`` (pattern to neurons) before its own.

        Example:
          >>> stacked = Neurons(output=(2,), stack=(0,))
          >>> Layout().override({r"layers/.*kernel$": stacked}).rules[0].pattern
          'layers/.*kernel$'
        """
        first = tuple(Rule(pattern, neurons) for pattern, neurons in rules.items())
        return dataclasses.replace(self, rules=first + self.rules)

    def rule(self, path: str, ndim: int) -> Rule | None:
        """Return the first rule for a leaf, ``None`` if it is left to the default."""
        for rule in self.rules:
            if rule.ranks is not None and ndim not in rule.ranks:
                continue
            if re.search(rule.pattern, path):
                return rule
        return None

    def neurons(self, path: str, ndim: int) -> Neurons:
        """Return the neurons of a leaf as its rule says them, axes unresolved."""
        rule = self.rule(path, ndim)
        if rule is None and ndim < 2:
            return Neurons(output=...)
        neurons = self.fallback if rule is None else rule.neurons
        if isinstance(neurons, Neurons):
            return neurons
        output = as_axes(neurons.output_axis, path)
        fan_in = as_axes(neurons.reduction_axis, path)
        taken = [axis % ndim for axis in output + fan_in if -ndim <= axis < ndim]
        if len(set(taken)) < len(output + fan_in):
            raise ValueError(f"{path}: {neurons} does not fit a leaf of rank {ndim}")
        return Neurons(output, tuple(a for a in range(ndim) if a not in taken))

    def axes(self, path: str, shape: tuple[int, ...]) -> Axes:
        """Resolve the axes of a leaf.

        Raises:
          TypeError: naming the leaf, for axes that are not integers.
          ValueError: naming the leaf, for axes and blocks that do not fit its shape.
          NotImplementedError: for mesh axes in ``reduce_over``.
        """
        return resolve(self.neurons(path, len(shape)), path, shape)

    def resolve(self, tree: Any) -> dict[str, Axes]:
        """Resolve the axes of every leaf, by path.

        Raises:
          TypeError: as `axes`.
          ValueError: as `axes`.
          NotImplementedError: as `axes`; inside ``shard_map``, for a leaf with a
            fan-in, unless its ``reduce_over`` says that it is whole.
        """
        manual = jax.sharding.get_abstract_mesh().manual_axes
        axes = {path: self.axes(path, np.shape(x)) for path, x in named_leaves(tree)}
        for path, of in axes.items():
            said = self.neurons(path, len(of.shape)).reduce_over is not None
            if manual and of.fan_in and not said:
                raise NotImplementedError(
                    f"{path}: inside shard_map over {manual}, say reduce_over=() in "
                    "Neurons if the fan-in is whole; a sharded fan-in is not supported "
                    "yet"
                )
        return axes


def as_layout(neurons: Layout | Neurons | MatrixAxes) -> Layout:
    """Return a layout; one `Neurons` is the rule of all leaves of rank 2 and more."""
    if isinstance(neurons, Layout):
        return neurons
    if isinstance(neurons, Neurons | MatrixAxes):
        return Layout(fallback=neurons)
    raise TypeError(
        f"neurons must be a Layout, Neurons or MuonDimensionNumbers, got {neurons!r}"
    )
