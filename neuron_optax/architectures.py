"""Published models as shapes and specs alone, in the layouts and names of Flax.

Layers are listed one by one, not scanned, so that `FLAX` knows the neurons of every
leaf. Specs name the mesh axes ``fsdp``, over which every large leaf is cut to save
memory, and ``tp``, over which neurons, heads and tokens are.
"""

import itertools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec


class Transformer(NamedTuple):
    """Sizes of a dense decoder with gated layers, without biases.

    Attributes:
      layers: how many blocks.
      width: features of a token between the blocks.
      heads: of the queries, of ``width // heads`` features each.
      groups: heads of the keys and of the values.
      hidden: features of the gated layer.
      tokens: in the vocabulary; embedding and head are not shared.

    Example:
      >>> sizes = Transformer(2, 64, 8, 2, 128, 1000)
      >>> sizes.width // sizes.heads
      8
    """

    layers: int
    width: int
    heads: int
    groups: int
    hidden: int
    tokens: int


TRANSFORMERS = {
    "llama-7b": Transformer(32, 4096, 32, 32, 11008, 32000),
    "llama-70b": Transformer(80, 8192, 64, 8, 28672, 32000),
    "llama-405b": Transformer(126, 16384, 128, 8, 53248, 128256),
}
CRITEO = (  # distinct values of the 26 categories of Criteo's terabyte of clicks
    *(227605432, 39060, 17295, 7424, 20265, 3, 7122, 1543, 63, 130229467, 3067956),
    *(405282, 10, 2209, 11938, 155, 4, 976, 14, 292775614, 40790948, 187188510),
    *(590152, 12973, 108, 36),
)
FEATURES = 256  # of each row of the tables
PADDED = 4096  # rows, to be divisible by any usual number of devices
ARCHITECTURES = (*TRANSFORMERS, "dlrm-terabyte")


class _Leaf(NamedTuple):
    shape: tuple[int, ...]
    spec: PartitionSpec


def _leaf(shape: tuple[int, ...], *mesh_axes: Any) -> _Leaf:
    return _Leaf(shape, PartitionSpec(*mesh_axes))


def architecture(name: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the shapes and the specs of a published model; nothing is allocated.

    ``llama-7b``, ``llama-70b`` and ``llama-405b`` have 6.74, 68.98 and 405.85 billion
    parameters. ``dlrm-terabyte`` has a row of 256 features for each of the 883 million
    values in Criteo's terabyte of clicks, 0.90 TB in float32; MLPerf's has 128 features
    and at most 40 million rows per table. Tables of more than 10,000 rows are padded to
    a multiple of 4096 and cut by rows; the others and the layers are replicated.

    Args:
      name: one of the four.

    Returns:
      A tree of float32 ``ShapeDtypeStruct`` and a tree like it of ``PartitionSpec``
      over the mesh axes ``fsdp`` and ``tp``.

    Raises:
      ValueError: for another name.

    Reference:
      Touvron et al., *LLaMA* (2023), arXiv:2302.13971, table 2; Touvron et al.,
      *Llama 2* (2023), arXiv:2307.09288, 70B; Grattafiori et al., *The Llama 3 Herd of
      Models* (2024), arXiv:2407.21783, table 3; what they leave open (widths of gated
      layers, vocabularies) is from the released configurations. Naumov et al., *DLRM*
      (2019), arXiv:1906.00091, with the hidden layers of MLPerf's training benchmark.

    Example:
      >>> shapes, specs = architecture("llama-70b")
      >>> shapes["layers_0"]["attention"]["key"]["kernel"].shape
      (8192, 8, 128)
      >>> specs["layers_0"]["attention"]["key"]["kernel"] == PartitionSpec("fsdp", "tp")
      True
    """
    if name not in ARCHITECTURES:
        raise ValueError(
            f"name must be one of {', '.join(ARCHITECTURES)}, got {name!r}"
        )
    tree = _transformer(TRANSFORMERS[name]) if name in TRANSFORMERS else _dlrm()
    is_leaf = lambda node: isinstance(node, _Leaf)
    shape = lambda leaf: jax.ShapeDtypeStruct(leaf.shape, jnp.float32)
    shapes = jax.tree.map(shape, tree, is_leaf=is_leaf)
    return shapes, jax.tree.map(lambda leaf: leaf.spec, tree, is_leaf=is_leaf)


def _transformer(sizes: Transformer) -> dict[str, Any]:
    tokens, width = sizes.tokens, sizes.width
    return {
        "embed": {"embedding": _leaf((tokens, width), "tp", "fsdp")},
        **{f"layers_{layer}": _block(sizes) for layer in range(sizes.layers)},
        "norm": {"scale": _leaf((width,))},
        "head": {"kernel": _leaf((width, tokens), "fsdp", "tp")},
    }


def _block(sizes: Transformer) -> dict[str, Any]:
    width, hidden, per_head = sizes.width, sizes.hidden, sizes.width // sizes.heads
    attention = {
        "query": _leaf((width, sizes.heads, per_head), "fsdp", "tp"),
        "key": _leaf((width, sizes.groups, per_head), "fsdp", "tp"),
        "value": _leaf((width, sizes.groups, per_head), "fsdp", "tp"),
        "out": _leaf((sizes.heads, per_head, width), "tp", None, "fsdp"),
    }
    return {
        "attention_norm": {"scale": _leaf((width,))},
        "attention": {name: {"kernel": leaf} for name, leaf in attention.items()},
        "mlp_norm": {"scale": _leaf((width,))},
        "gate": {"kernel": _leaf((width, hidden), "fsdp", "tp")},
        "up": {"kernel": _leaf((width, hidden), "fsdp", "tp")},
        "down": {"kernel": _leaf((hidden, width), "tp", "fsdp")},
    }


def _dlrm() -> dict[str, Any]:
    vectors = (
        len(CRITEO) + 1
    )  # whose inner products feed the top, with the last of them
    pairs = vectors * (vectors - 1) // 2
    return {
        **_dense("bottom", 13, 512, 256, FEATURES),
        **{f"table_{n}": {"embedding": _table(rows)} for n, rows in enumerate(CRITEO)},
        **_dense("top", pairs + FEATURES, 1024, 1024, 512, 256, 1),
    }


def _dense(name: str, *sizes: int) -> dict[str, Any]:
    return {
        f"{name}_{n}": {"kernel": _leaf(pair), "bias": _leaf(pair[1:])}
        for n, pair in enumerate(itertools.pairwise(sizes))
    }


def _table(rows: int) -> _Leaf:
    if rows <= 10_000:
        return _leaf((rows, FEATURES))
    padded = -(-rows // PADDED) * PADDED
    return _leaf((padded, FEATURES), ("fsdp", "tp"))
