"""Parameters and statistics between torch's ``state_dict`` and trees of JAX."""

from typing import Any

import jax
import numpy as np
import torch

from neuron_optax.interop.leaves import (
    check_averages,
    check_kinds,
    named_arrays,
    with_arrays,
)
from neuron_optax.interop.links import Names, find_links
from neuron_optax.interop.modules import Source, tensors_of, to_array, to_tensor


def params_from_torch(
    module: Source,
    like: Any,
    names: Names | None = None,
    *,
    transpose_kernel: bool | None = None,
) -> Any:
    """Return the parameters and statistics of a torch module as a tree of JAX.

    Linear, Conv1d-3d, ConvTranspose1d-3d, Embedding, MultiheadAttention, LayerNorm,
    GroupNorm, RMSNorm, BatchNorm1d-3d, LSTM, GRU and their cells become the layers of
    Flax linen, NNX or Equinox: axes are permuted, taps reversed, gates and heads cut.
    Every tensor and every leaf is used once; ``num_batches_tracked`` has no leaf.

    Args:
      module: a ``torch.nn.Module``. Its ``state_dict`` does where it has neither
        convolutions nor attention, of which it does not say enough; a weight of rank 2
        is then what the name of its leaf says.
      like: tree whose structure, shapes and dtypes are wanted, of arrays or
        ``jax.ShapeDtypeStruct``: linen variables or params, an ``nnx.State`` of
        parameters (and ``nnx.BatchStat``), an Equinox module, filtered or not, or the
        pair of one and its ``eqx.nn.State``.
      names: paths in ``like`` (``"Dense_0"``) by name of a torch module
        (``"encoder.0"``) or of a module around it; by default the same names, '/' for
        '.'. Collections of linen are no part of a path. Cells of ``lstm`` are
        ``lstm.l0``, ``lstm.l0_reverse``, ``lstm.l1`` ... A parameter that is of no
        layer above keeps its axes, if its own name is among ``names``. ``None`` for the
        name of a tensor: JAX has none for it (a causal mask, ``inv_freq``), and
        `params_to_torch` keeps that of torch.
      transpose_kernel: of the ``ConvTranspose`` of Flax; needed where a kernel has as
        many inputs as outputs.

    Returns:
      A tree like ``like``; what is not an array in it stays.

    Raises:
      TypeError: if ``module`` is neither module nor ``state_dict``.
      ValueError: naming tensors and leaves that are left, shapes that do not fit,
        options that only torch has (``add_zero_attn``, ``max_norm``), leaves of
        integers that floats are for, and what a ``state_dict``, a square kernel or a
        kernel with inputs on several axes leaves open; but a layer named ``out`` is
        taken for attention's, of which the inputs are (heads, dim).

    Note:
      A layer after a flattened convolution has its inputs in the order (C, H, W) in
      torch and (H, W, C) in Flax; their shapes are the same. In Flax, transpose the
      activations to (N, C, H, W) before they are flattened:
      ``x.transpose(0, 3, 1, 2).reshape(len(x), -1)``.

      LSTM and GRU have two biases in torch and one where they are summed: the leaf is
      the sum. A unit of ``nnx.GRUCell`` has no bias within its reset gate: torch's must
      be zero. Paddings, strides, heads of Equinox's attention and ``eps`` are the
      model's: that of Flax's norms is 1e-6, torch's 1e-5; so are the groups of
      ``GroupNorm`` and the momentum of ``BatchNorm``, which in Flax is 1 - torch's.
      The softmax of ``nnx.MultiHeadAttention`` is in float32 whatever its dtype: it
      agrees to 1e-7 only. In training, torch's averages are of the unbiased variance of
      batches, those of Flax and Equinox of the biased one. Flax has them in float32
      whatever its ``param_dtype``: with float64 in ``like`` they keep their digits.
      Tensors that are tied in torch need one leaf; two get the same values and part in
      training.

    Example:
      >>> from jax import ShapeDtypeStruct
      >>> linear = torch.nn.Linear(3, 2)
      >>> kernel, bias = (ShapeDtypeStruct(of, "float32") for of in ((3, 2), (2,)))
      >>> like = {"Dense_0": {"kernel": kernel, "bias": bias}}
      >>> params = params_from_torch(linear, like, {"": "Dense_0"})
      >>> kernel = linear.weight.detach().numpy().T
      >>> bool((params["Dense_0"]["kernel"] == kernel).all())
      True
    """
    tensors, leaves = tensors_of(module), named_arrays(like)
    found = find_links(module, tensors, leaves, names, transpose_kernel)
    arrays = {name: to_array(tensor) for name, tensor in tensors.items()}
    for name, rows in found.zeros:
        if np.any(arrays[name][rows]):
            raise ValueError(
                f"{name}: there is no leaf for its part within the reset gate, which "
                "must be zero (nnx.GRUCell; linen's and Equinox's have one)"
            )
    return with_arrays(like, {link.path: link.gather(arrays) for link in found.links})


def params_to_torch(
    params: Any,
    module: Source,
    names: Names | None = None,
    *,
    transpose_kernel: bool | None = None,
) -> dict[str, torch.Tensor]:
    """Return a tree of JAX as a ``state_dict`` of a torch module.

    Args:
      params: the tree, as ``like`` of `params_from_torch`, of arrays.
      module: a ``torch.nn.Module`` or its ``state_dict``, which decides names, shapes,
        dtypes and devices. It is not changed.
      names: as of `params_from_torch`.
      transpose_kernel: as of `params_from_torch`.

    Returns:
      Tensors by name, to be loaded with ``strict=True``. Of two biases that are one
      leaf, that of the inputs has all of it and that of the hidden units is zero;
      ``num_batches_tracked`` is that of ``module``.

    Raises:
      TypeError: as `params_from_torch`.
      ValueError: as `params_from_torch`; naming tensors that are tied in torch and have
        leaves that differ, and averages that Equinox has still to correct.

    Example:
      >>> import jax.numpy as jnp
      >>> linear = torch.nn.Linear(3, 2)
      >>> params = {"kernel": jnp.ones((3, 2)), "bias": jnp.zeros(2)}
      >>> linear.load_state_dict(params_to_torch(params, linear))
      <All keys matched successfully>
      >>> linear(torch.ones(3)).tolist()
      [3.0, 3.0]
    """
    tensors, leaves = tensors_of(module), named_arrays(params)
    check_averages(params)
    found = find_links(module, tensors, leaves, names, transpose_kernel)
    linked = {name for link in found.links for name in link.names}
    arrays = {name: np.zeros_like(to_array(tensors[name])) for name in linked}
    for link in found.links:
        if isinstance(leaves[link.path], jax.ShapeDtypeStruct):
            raise ValueError(f"{link.path}: params must be arrays, this is their shape")
        leaf = np.asarray(leaves[link.path])
        check_kinds(link.path, leaf.dtype, arrays[link.names[0]].dtype)
        link.scatter(leaf, arrays)
    for name, other in found.tied.items():
        if name not in linked:
            arrays[name] = arrays[other]
        elif not np.array_equal(arrays[name], arrays[other], equal_nan=True):
            raise ValueError(f"{name} is {other} in torch, but their leaves differ")
    whole = module.state_dict() if isinstance(module, torch.nn.Module) else module
    return {
        name: to_tensor(arrays[name], tensor) if name in arrays else tensor.clone()
        for name, tensor in whole.items()
    }
