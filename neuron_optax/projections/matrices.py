"""Changes of a layer's update as one matrix, with a row for each neuron."""

import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.typing import DTypeLike
from jaxtyping import Array, Inexact

from neuron_optax.axes import FLAX, Axes, Layout, MatrixAxes, Neurons, as_layout
from neuron_optax.numerics import require_within, root
from neuron_optax.pieces import require_whole
from neuron_optax.projections.stateless import around, stateless
from neuron_optax.rates import require_positive
from neuron_optax.statistics import sum_square

ROUNDED = "bfloat16", "float16", "float32"
Matrices = Inexact[Array, "*copies outputs inputs"]


def is_matrix(axes: Axes) -> bool:
    """Whether a leaf has both neurons and a fan-in.

    Example:
      >>> is_matrix(FLAX.axes("Dense_0/kernel", (3, 2)))
      True
      >>> is_matrix(FLAX.axes("Dense_0/bias", (2,)))
      False
    """
    return bool(axes.output and axes.fan_in)


def orthogonalize(
    steps: int | Array = 5,
    eps: float | Array = 1e-7,
    *,
    matmul_dtype: DTypeLike | None = None,
    neurons: Layout | Neurons | MatrixAxes = FLAX,
) -> optax.GradientTransformationExtraArgs:
    r"""Bring the singular values of every matrix close to 1: Muon's Newton-Schulz.

    .. math::
      X_0 = U / (\lVert U \rVert_F + \epsilon), \qquad
      X_{k+1} = a X_k + (b A_k + c A_k^2) X_k, \quad A_k = X_k X_k^\top

    with :math:`(a, b, c) = (3.4445, -4.7750, 2.0315)`.

    Args:
      steps: how often to iterate.
      eps: :math:`\epsilon > 0`, in units of the update.
      matmul_dtype: to which the factors of every product are rounded, ``"bfloat16"``,
        ``"float16"`` or ``"float32"`` (the name, under ``optax.inject_hyperparams``).
        Products are added up, and all else is kept, in at least float32. ``None`` for
        no rounding.
      neurons: the axes that index the neurons, by leaf; all of them are the rows, the
        fan-in is the columns, and every copy along stack axes is a matrix of its own.
        Blocks count as if they were not said.

    Returns:
      A transformation without state; updates are without unit. Without
      ``matmul_dtype`` it computes in the highest precision of at least float32. Leaves
      that have no neurons or no fan-in (biases) stay as they are. Where devices share a
      matrix, each gathers it whole.

    Raises:
      TypeError: for another ``matmul_dtype``.
      ValueError: if ``eps`` is a number that is not positive or ``steps`` one below 1;
        at ``update``, for a complex leaf beside ``matmul_dtype``; as
        `scale_per_neuron`.
      NotImplementedError: inside ``shard_map``, for a leaf that may be a piece.

    Reference:
      Jordan et al., *Muon* (2024), https://kellerjordan.github.io/posts/muon.

    Example:
      >>> kernel = jnp.array([[3.0, 0.0], [0.0, 0.1]])
      >>> optimizer = orthogonalize()
      >>> update, _ = optimizer.update(kernel, optimizer.init(kernel))
      >>> jnp.linalg.svd(update).S.round(1).tolist()
      [1.100000023841858, 0.699999988079071]
    """
    require_within("steps", steps, 1)
    require_positive("eps", eps)
    if matmul_dtype is not None and jnp.dtype(matmul_dtype).name not in ROUNDED:
        raise TypeError(
            f"matmul_dtype must be one of {', '.join(ROUNDED)} or None, got "
            f"{jnp.dtype(matmul_dtype)}"
        )

    def orthogonal(update, param, of):
        if matmul_dtype is not None and jnp.iscomplexobj(update):
            raise ValueError(f"matmul_dtype must be None for {update.dtype}")
        iterate = functools.partial(
            newton_schulz, steps=steps, eps=eps, matmul_dtype=matmul_dtype
        )
        return on_matrices(iterate, of, update) if is_matrix(of) else update

    return stateless(orthogonal, neurons)


def on_matrices(function: Callable[[Matrices], Matrices], of: Axes, leaf: Array):
    """Apply ``function`` to the matrices of a leaf in its view."""
    matrices = to_matrices(of, leaf)
    alone = len(matrices) == 1  # as a batch of one it is slower and needs more memory
    new = function(matrices[0])[None] if alone else function(matrices)
    return from_matrices(of, new, leaf)


def to_matrices(of: Axes, leaf: Array) -> Matrices:
    """Return the copies of a leaf in its view as matrices, gathered whole."""
    require_whole(leaf, "its matrix")
    whole = of.whole
    if jax.typeof(leaf).sharding.mesh.explicit_axes:
        leaf = jax.sharding.reshard(leaf, jax.sharding.PartitionSpec())
    rows = jnp.transpose(leaf.reshape(whole.shape), _order(whole))
    parts = whole.stack, whole.output, whole.fan_in
    return rows.reshape([math.prod(whole.shape[a] for a in part) for part in parts])


def from_matrices(of: Axes, matrices: Matrices, like: Array) -> Array:
    """Return matrices as a leaf in its view, sharded like ``like``."""
    whole, order = of.whole, _order(of.whole)
    rows = matrices.reshape([whole.shape[axis] for axis in order])
    leaf = jnp.transpose(rows, np.argsort(order).tolist()).reshape(of.view)
    sharding = jax.typeof(like).sharding
    explicit = sharding.mesh.explicit_axes
    return jax.sharding.reshard(leaf, sharding) if explicit else leaf


def _order(of: Axes) -> tuple[int, ...]:
    return of.stack + of.output + of.fan_in


def newton_schulz(
    matrices: Matrices,
    steps: int | Array = 5,
    eps: float | Array = 1e-7,
    matmul_dtype: DTypeLike | None = None,
) -> Matrices:
    """Iterate Newton-Schulz on matrices, see `orthogonalize`."""
    a, b, c = 3.4445, -4.7750, 2.0315
    adjoint = lambda m: jnp.conj(jnp.swapaxes(m, -1, -2))
    x = matrices / (root(sum_square(matrices, None, (-2, -1))) + eps)
    tall = x.shape[-2] > x.shape[-1]
    x = adjoint(x) if tall else x

    def product(axes, *factors):
        low = [jnp.asarray(factor, matmul_dtype) for factor in factors]
        return jnp.einsum(axes, *low, preferred_element_type=x.dtype)

    def iterate(_, x):
        # XLA copies a batch to transpose it, and takes half as long again
        gram = product("...ik,...jk->...ij", x, jnp.conj(x))
        square = product("...ik,...kj->...ij", gram, gram)
        return a * x + product("...ik,...kj->...ij", b * gram + c * square, x)

    with jax.default_matmul_precision("highest"):
        if isinstance(steps, int):  # a loop of JAX would compile at every eager call
            for step in range(steps):
                x = iterate(step, x)
        else:
            x = jax.lax.fori_loop(0, steps, iterate, x)
    return adjoint(x) if tall else x


def preserve_norm(
    inner: optax.GradientTransformation,
    eps: float | Array = 1e-10,
    *,
    neurons: Layout | Neurons | MatrixAxes = FLAX,
) -> optax.GradientTransformationExtraArgs:
    r"""Give what a transformation returns the norm of what it got, layer by layer.

    .. math:: u = d \cdot \lVert g \rVert_F / (\lVert d \rVert_F + \epsilon), \qquad
      d = \mathrm{inner}(g)

    Args:
      inner: the transformation.
      eps: :math:`\epsilon > 0`, in units of :math:`d`.
      neurons: only its stack axes count: each copy is a layer of its own.

    Returns:
      A transformation with the state of ``inner``.

    Raises:
      ValueError: if ``eps`` is a number that is not positive; as `scale_per_neuron`.
      NotImplementedError: inside ``shard_map``, for a leaf that may be a piece.

    Reference:
      Li et al., *NorMuon* (2025), arXiv:2510.05491.

    Example:
      >>> optimizer = preserve_norm(optax.scale_by_sign())
      >>> kernel = jnp.array([[3.0], [4.0]])
      >>> update, _ = optimizer.update(kernel, optimizer.init(kernel))
      >>> round(float(jnp.linalg.norm(update)), 4)
      5.0
    """
    require_positive("eps", eps)

    def restored(update, before, of):
        require_whole(update, "its layer")
        layer = of.layer.fan_in
        size, wanted = (root(sum_square(u, None, layer)) for u in (update, before))
        return update * (wanted / (size + eps))

    return around(inner, as_layout(neurons), restored)


def scale_by_shape(
    factor: Callable[[int, int], Any],
    *,
    neurons: Layout | Neurons | MatrixAxes = FLAX,
) -> optax.GradientTransformationExtraArgs:
    r"""Scale a matrix by a function of its shape, as Muon and its relatives do.

    Args:
      factor: ``factor(outputs, inputs)`` of a matrix with so many neurons and so large
        a fan-in, without unit.
      neurons: the axes that index the neurons, by leaf.

    Returns:
      A transformation without state. Leaves that have no neurons or no fan-in
      (biases) stay as they are.

    Raises:
      ValueError: as `scale_per_neuron`.
      NotImplementedError: inside ``shard_map``, for a leaf that may be a piece.

    Note:
      Under ``optax.inject_hyperparams`` a bare function is taken for a schedule: name
      ``factor`` in ``static_args``.

    Example:
      >>> optimizer = scale_by_shape(lambda outputs, inputs: outputs / inputs)
      >>> kernel = jnp.ones((2, 6))
      >>> optimizer.update(kernel, optimizer.init(kernel))[0][0, 0].item()
      3.0
    """

    def scaled(update, param, of):
        if not is_matrix(of):
            return update
        require_whole(update, "its matrix")
        return update * factor(*matrix_shape(of))

    return stateless(scaled, neurons)


def aspect_ratio(outputs: int, inputs: int) -> float:
    r"""Return Muon's factor of a matrix's shape, :math:`\sqrt{\max(1, m/k)}`."""
    return math.sqrt(max(1.0, outputs / max(inputs, 1)))


def matrix_shape(of: Axes) -> tuple[int, int]:
    """Return the number of neurons and the fan-in of one copy of a leaf."""
    whole = of.whole
    outputs, inputs = (
        math.prod(whole.shape[axis] for axis in part)
        for part in (whole.output, whole.fan_in)
    )
    return outputs, inputs
