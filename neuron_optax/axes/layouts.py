"""Rules that find the neurons of every leaf of a tree by its path and rank.

Axes follow from path and shape alone; see `trees` for the paths.
"""

import dataclasses
import functools
import re
from collections.abc import Collection, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np

from neuron_optax.axes.neurons import (
    Axes,
    MatrixAxes,
    Neurons,
    as_axes,
    check_reduce_over,
    resolve,
)
from neuron_optax.axes.siblings import kernel_of
from neuron_optax.pieces import manual_axes, may_be_piece
from neuron_optax.trees import PART, named_leaves


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
      leaves: path and neurons of each leaf of the tree that the layout was inferred
        from, tried after the rules; other leaves then raise.
      undecided: paths that `infer_layout` could not decide.
      reduce_over: `Neurons.reduce_over` of the leaves that do not say it.

    Raises:
      ValueError: if a pattern is no regular expression.
      TypeError: if a rule is no `Rule`, or a rule or the fallback gives no neurons.

    Example:
      >>> layout = Layout(rules=(Rule(r"table$", Neurons(output=(0,))),))
      >>> layout.axes("table", (100, 8)).fan_in, layout.axes("kernel", (3, 2)).fan_in
      ((1,), (0,))
    """

    rules: tuple[Rule, ...] = ()
    fallback: Neurons | MatrixAxes = dataclasses.field(default_factory=Neurons)
    leaves: tuple[tuple[str, Neurons], ...] = ()
    undecided: tuple[str, ...] = ()
    reduce_over: tuple[str, ...] | None = None

    def __post_init__(self):
        for rule in self.rules:
            if not isinstance(rule, Rule) or not isinstance(rule.pattern, str):
                raise TypeError(f"layout rules must be Rule(pattern, ...), got {rule}")
            try:
                re.compile(rule.pattern)
            except re.error as error:
                raise ValueError(f"layout rule {rule.pattern!r}: {error}") from error
        check_reduce_over(self.reduce_over, "layout")
        named = {f"rule {rule.pattern!r}": rule.neurons for rule in self.rules}
        for place, neurons in (named | {"fallback": self.fallback}).items():
            if not isinstance(neurons, Neurons | MatrixAxes):
                raise TypeError(f"layout {place}: not Neurons, {neurons!r}")

    def override(self, rules: Mapping[str, Neurons | MatrixAxes]) -> "Layout":
        """Return a layout that tries ``rules`` before its own.

        Args:
          rules: pattern, searched in the path, to neurons. What was undecided and
            matches is decided.

        Raises:
          ValueError: as `Layout`.
          TypeError: as `Layout`.

        Example:
          >>> stacked = Neurons(output=(2,), stack=(0,))
          >>> Layout().override({r"layers/.*kernel$": stacked}).rules[0].pattern
          'layers/.*kernel$'
        """
        first = tuple(Rule(pattern, neurons) for pattern, neurons in rules.items())
        layout = dataclasses.replace(self, rules=first + self.rules)
        found = lambda path: any(re.search(rule.pattern, path) for rule in first)
        undecided = tuple(path for path in self.undecided if not found(path))
        return dataclasses.replace(layout, undecided=undecided)

    def with_reduce_over(self, mesh_axes: tuple[str, ...]) -> "Layout":
        """Return a layout for the pieces of a whole model inside ``shard_map``.

        Args:
          mesh_axes: over which the fan-in of all leaves, and nothing else of them, is
            sharded. A leaf that they do not cut has to say ``reduce_over=()`` of its
            own, unless ``shard_map`` checks (``check_vma``), so that it is seen; one
            whose neurons they cut has to say what cuts its fan-in.

        Raises:
          TypeError: for what is no tuple of distinct names.

        Example:
          >>> Layout().with_reduce_over(("fsdp",)).neurons("kernel", 2).reduce_over
          ('fsdp',)
        """
        return dataclasses.replace(self, reduce_over=mesh_axes)

    def rule(self, path: str, ndim: int) -> Rule | None:
        """Return the first rule for a leaf, ``None`` if it is left to the default.

        Raises:
          ValueError: naming the leaf, if the layout was inferred from a tree without.
        """
        name = re.sub(PART, "", path)
        for rule in self.rules:
            if rule.ranks is not None and ndim not in rule.ranks:
                continue
            if re.search(rule.pattern, name):
                return rule
        if self.leaves and name not in self._by_path:
            raise ValueError(
                f"{path}: not a leaf of the tree that this layout was inferred from, "
                f"which are {list(self._by_path)[:3]} ..."
            )
        return Rule(name, self._by_path[name]) if self.leaves else None

    @functools.cached_property
    def _by_path(self) -> dict[str, Neurons]:
        return dict(self.leaves)

    def neurons(self, path: str, ndim: int) -> Neurons:
        """Return the neurons of a leaf as its rule says them, axes unresolved.

        Raises:
          TypeError: naming the leaf, for ``MuonDimensionNumbers`` not of integers.
          ValueError: naming the leaf, for such that do not fit its rank; as `rule`.
        """
        rule = self.rule(path, ndim)
        if rule is None and ndim < 2:
            return Neurons(output=...)
        neurons = self.fallback if rule is None else rule.neurons
        if isinstance(neurons, Neurons):
            said = neurons.reduce_over is not None
            return neurons._replace(
                reduce_over=neurons.reduce_over if said else self.reduce_over
            )
        output = as_axes(neurons.output_axis, path)
        fan_in = as_axes(neurons.reduction_axis, path)
        taken = [axis % ndim for axis in output + fan_in if -ndim <= axis < ndim]
        if len(set(taken)) < len(output + fan_in):
            raise ValueError(f"{path}: {neurons} does not fit a leaf of rank {ndim}")
        stack = tuple(axis for axis in range(ndim) if axis not in taken)
        return Neurons(output, stack, reduce_over=self.reduce_over)

    def axes(self, path: str, shape: tuple[int, ...]) -> Axes:
        """Resolve the axes of a leaf.

        Raises:
          TypeError: naming the leaf, for axes that are not integers.
          ValueError: naming the leaf, for axes and blocks that do not fit its shape.
        """
        return resolve(self.neurons(path, len(shape)), path, shape)

    def resolve(self, tree: Any) -> dict[str, Axes]:
        """Resolve the axes of every leaf, by path.

        A bias of one neuron per entry that says nothing of copies has the stack axes
        of the kernel beside it, if they have the same lengths.

        Raises:
          TypeError: as `axes`.
          ValueError: as `axes`; if two leaves have one path; inside ``shard_map``,
            where ``reduce_over`` of a leaf with a fan-in is not said or names no mesh
            axes.
          NotImplementedError: inside ``shard_map``, for blocks of what may be a piece.
        """
        leaves = {}
        for path, leaf in named_leaves(tree):
            if path in leaves:
                raise ValueError(f"{path}: two leaves have this path")
            leaves[path] = leaf
        axes = {path: self.axes(path, np.shape(leaf)) for path, leaf in leaves.items()}
        for path in axes:
            kernel = kernel_of(path, axes)
            if kernel is not None and axes[kernel].stack and not axes[path].stack:
                axes[path] = self._stacked(path, axes[path], kernel, axes[kernel])
        if manual_axes():
            return {path: self._piece(path, axes[path], leaves[path]) for path in axes}
        return axes

    def _stacked(self, bias: str, theirs: Axes, kernel: str, ours: Axes) -> Axes:
        rank, said = len(theirs.shape), self.neurons(bias, len(theirs.shape))
        stack = as_axes(self.neurons(kernel, len(ours.shape)).stack, kernel)
        lengths = [theirs.shape[n] if -rank <= n < rank else None for n in stack]
        if said.output is not ... or lengths != [ours.shape[n] for n in stack]:
            return theirs
        return resolve(said._replace(stack=stack), bias, theirs.shape)

    def _piece(self, path: str, of: Axes, leaf: Any) -> Axes:
        """Return axes that say along which mesh axes the fan-in is cut."""
        manual, over = manual_axes(), self.neurons(path, len(of.shape)).reduce_over
        if of.view != of.shape and may_be_piece(leaf):
            raise NotImplementedError(
                f"{path}: inside shard_map over {manual} the blocks of what may be a "
                "piece cannot be counted: give them an axis of their own"
            )
        if of.fan_in and over is None:
            raise ValueError(
                f"{path}: inside shard_map over {manual}, say reduce_over=() in "
                "Neurons or of the Layout if the fan-in is whole, or name the mesh "
                "axes over which it is sharded"
            )
        known = jax.sharding.get_abstract_mesh().axis_names
        if not set(over or ()) <= set(known):
            raise ValueError(f"{path}: reduce_over must be of {known}, got {over}")
        cut = tuple(name for name in over or () if name in manual)
        return of._replace(over=cut) if of.fan_in else of


def as_layout(neurons: Layout | Neurons | MatrixAxes) -> Layout:
    """Return a layout; one `Neurons` is the rule of all leaves of rank 2 and more."""
    if isinstance(neurons, Layout):
        return neurons
    if isinstance(neurons, Neurons | MatrixAxes):
        return Layout(fallback=neurons)
    raise TypeError(
        "neurons must be a Layout, Neurons or MuonDimensionNumbers, got "
        f"{type(neurons).__name__}"
    )
