"""One of our optimizers and one of torch's side by side on the same gradients.

torch's tensors have one row per neuron, so that what torch does row by row is done
neuron by neuron.
"""

import math
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import torch

from neuron_optax.axes import FLAX, Axes, Layout, MatrixAxes, Neurons, as_layout
from neuron_optax.boxes import unbox
from neuron_optax.interop.differences import Comparison, Pairs, compare_runs
from neuron_optax.numerics import require_within
from neuron_optax.trees import map_named, named_leaves

DTYPES = "float64", "float32", "float16", "bfloat16"


def compare_with_torch(
    jax_optimizer: optax.GradientTransformation,
    torch_optimizer: Callable[[dict[str, torch.nn.Parameter]], Any],
    params: Any,
    gradients: Iterable[Any],
    *,
    neurons: Layout | Neurons | MatrixAxes = FLAX,
    tolerance: float = 32.0,
    show: bool = True,
) -> Comparison:
    r"""Run an optimizer and one of torch's on the same gradients and tell them apart.

    Both start from the same weights and keep their own. After step :math:`t` an entry
    differs by, in units in the last place (ulp) of its dtype,

    .. math:: |w_t - w'_t| \,/\, \mathrm{ulp}(\max_{s \le t} \max(|w_s|, |w'_s|))

    with :math:`w'` torch's, so that a weight that passes zero, where its own ulp is as
    small as you like, is measured by what was rounded on its way there. Two NaN, or two
    equal infinities, agree, and are counted; one alone is infinitely far.

    Args:
      jax_optimizer: any transformation that needs no extra arguments; its ``update``
        is compiled.
      torch_optimizer: makes torch's optimizer (anything with ``step()``) of the
        parameters by the path of their leaf, in the order of the tree.
      params: weights to start from, of float64, float32, float16 or bfloat16; torch's
        are of the same dtype. NumPy arrays of float64 need ``jax_enable_x64``.
      gradients: for every step a tree with the leaves of ``params``, cast to their
        dtypes.
      neurons: what is a row of torch's tensors, as ``neurons`` of the strategies. Such
        a tensor has shape (neurons, fan-in ...): the stack and output axes of the leaf
        become its first, in this order, and the fan-in axes follow in theirs; a block
        is one row. A Flax kernel (in, out) becomes (out, in), a bias stays as it is.
      tolerance: ulp beyond which the two part, in [0, inf). Rounding adds up slowly:
        SGD with momentum, Adam, Adagrad and RMSprop stay within 20 ulp of torch's for
        500 steps in float64 and bfloat16 (``python -m neuron_optax compare``).
      show: print the result.

    Returns:
      A `Comparison`, whose first line says where they part first, in which dtypes,
      and how many entries are finite on neither side.

    Raises:
      TypeError: naming the leaf, for other dtypes, and for float64 while
        ``jax_enable_x64`` is off, which would make it float32; if ``torch_optimizer``
        returns what has no ``step``.
      ValueError: if there are no params; naming the step, for gradients with other
        leaves or shapes than ``params``; if torch's optimizer moves nothing in all
        steps, as happens to one that does not hold the parameters it was given; if no
        entry is finite on either side after any step; as ``jax_optimizer``.

    Note:
      Stacked copies are more rows of one tensor: what torch does with whole matrices
      (Muon, say) it does with all copies as one. In float32, Adam of Optax and
      torch's part at the first step by 100 ulp or so, since Optax computes
      :math:`1 - \beta_2^t` in float32: tell algorithms apart in float64.

    Example:
      >>> params = {"kernel": jnp.ones((3, 2))}
      >>> halves = [{"kernel": jnp.full((3, 2), 0.5)}] * 2
      >>> sgd = lambda named: torch.optim.SGD(named.values(), lr=0.5)
      >>> comparison = compare_with_torch(optax.sgd(0.5), sgd, params, halves)
      agree within 0 ulp in all 2 steps, in float32
      step  path    absolute  relative  ulp
      1     kernel  0         0         0
      2     kernel  0         0         0
      >>> slow = optax.sgd(0.25)
      >>> str(compare_with_torch(slow, sgd, params, halves, show=False).parting)
      "step 1, kernel, entry (0, 0): ours 0.875, torch's 0.75, 1.05e+06 ulp"
    """
    require_within("tolerance", tolerance, 0)
    params = unbox(params)
    _check_dtypes(dict(named_leaves(params)))
    params = jax.tree.map(jnp.asarray, params)
    dtypes = {path: leaf.dtype for path, leaf in named_leaves(params)}
    axes = as_layout(neurons).resolve(params)
    runs = _side_by_side(jax_optimizer, torch_optimizer, params, gradients, axes)
    comparison = compare_runs(runs, dtypes, tolerance)
    if show:
        print(comparison)
    return comparison


def _side_by_side(
    jax_optimizer, torch_optimizer, params, gradients, axes
) -> Iterator[Pairs]:
    """Yield the leaves of both sides before the first step and after every one."""
    tensors = {path: _rows(axes[path], leaf) for path, leaf in named_leaves(params)}
    theirs = {path: torch.nn.Parameter(of.clone()) for path, of in tensors.items()}
    optimizer = torch_optimizer(dict(theirs))
    if not hasattr(optimizer, "step"):
        kind = type(optimizer).__name__
        raise TypeError(f"torch_optimizer must return an optimizer, got {kind}")
    state, update = jax_optimizer.init(params), jax.jit(jax_optimizer.update)
    step, moved = 0, False
    yield _pairs(params, theirs, axes)
    for step, grads in enumerate(gradients, start=1):
        grads = _gradients(step, unbox(grads), params)
        updates, state = update(grads, state, params)
        params = optax.apply_updates(params, updates)
        for path, gradient in named_leaves(grads):
            theirs[path].grad = _rows(axes[path], gradient)
        optimizer.step()
        at = ((of.detach(), tensors[path]) for path, of in theirs.items())
        moved = moved or not all(torch.equal(now, start) for now, start in at)
        yield _pairs(params, theirs, axes)
    if not moved:
        raise ValueError(
            f"torch's optimizer moved no weight in {step} steps: does it hold the "
            "parameters that torch_optimizer was given, and are there gradients that "
            "are not zero?"
        )


def _rows(of: Axes, leaf: jax.Array) -> torch.Tensor:
    """Return a tensor of torch's with a row for each neuron."""
    kept = of.stack + of.output
    fan_in = [of.view[axis] for axis in of.fan_in]
    wide = np.asarray(leaf, np.float64).reshape(of.view)  # which holds every float
    wide = wide.transpose(kept + of.fan_in)
    rows = wide.reshape(math.prod(of.view[axis] for axis in kept), *fan_in)
    return torch.tensor(rows, dtype=getattr(torch, leaf.dtype.name))


def _leaf(of: Axes, tensor: torch.Tensor) -> np.ndarray:
    """Return the leaf whose rows are those of a tensor."""
    order = of.stack + of.output + of.fan_in
    wide = tensor.detach().to(torch.float64).numpy()
    wide = wide.reshape([of.view[axis] for axis in order])
    return wide.transpose(np.argsort(order)).reshape(of.shape).copy()


def _pairs(params, theirs, axes) -> Pairs:
    return {
        path: (np.asarray(leaf, np.float64), _leaf(axes[path], theirs[path]))
        for path, leaf in named_leaves(params)
    }


def _gradients(step: int, grads: Any, params: Any) -> Any:
    """Return gradients in the dtypes of the params."""
    came, wanted = (dict(named_leaves(tree)) for tree in (grads, params))
    if came.keys() != wanted.keys():
        raise ValueError(
            f"gradients of step {step} must have the leaves of params: missing "
            f"{sorted(wanted.keys() - came.keys())}, "
            f"unexpected {sorted(came.keys() - wanted.keys())}"
        )

    def cast(path, param):
        gradient = came[path]
        if np.shape(gradient) != param.shape or np.iscomplexobj(gradient):
            raise ValueError(
                f"{path}: the gradient of step {step} must be real of shape "
                f"{param.shape}, got {jnp.result_type(gradient)} {np.shape(gradient)}"
            )
        return jnp.asarray(gradient, param.dtype)

    return map_named(cast, params)


def _check_dtypes(leaves: dict[str, Any]) -> None:
    if not leaves:
        raise ValueError("params must have leaves, got a tree of none")
    for path, leaf in leaves.items():
        kept = jnp.result_type(leaf)  # by jax, which makes float64 float32 unless told
        dtype = getattr(leaf, "dtype", kept)
        if dtype.name not in DTYPES:
            raise TypeError(f"{path}: params must be of {DTYPES}, got {dtype}")
        if dtype != kept:
            raise TypeError(
                f"{path}: params are {dtype} but jax_enable_x64 is off, so that they "
                f"would be {kept}: turn it on, or give params of {kept}"
            )
