r"""The layouts of Flax, PyTorch, Equinox and Haiku, and two that fit any tree.

What path and rank leave open has a default here; say otherwise in one line:

- stacked copies (``scan``, ``vmap``, experts): the last axis (`TORCH`: the first)
  indexes the neurons and the copies are merged; `describe` marks them;
  ``FLAX.override({r"layers/.*kernel": Neurons(stack=(0,))})``; biases follow
- ``DenseGeneral``, ``Einsum``: the last axis; ``{"Einsum_0/kernel": Neurons((1, 2))}``
- transposed kernels: ``{"ConvTranspose_0/kernel": Neurons((-2,))}`` for Flax's
  ``transpose_kernel``, ``{"up/weight": Neurons((1,))}`` for torch's
- embeddings: a neuron is a row, of one token; ``{"embedding": Neurons((1,))}``
- folded heads: a neuron is an entry of a head; one number per head by
  ``{"query/w": Neurons(blocks=((1, heads),))}``, of torch's and Equinox's weights by
  ``{"query_proj/weight": Neurons((0,), blocks=((0, heads),))}``, and by
  ``{"query/kernel": Neurons((1,))}`` where heads have an axis
"""

from neuron_optax.axes.layouts import Layout, Rule
from neuron_optax.axes.neurons import Neurons

_ENTRIES = Neurons(output=...)
_ROWS = Neurons(output=(0,))
NORM = r"(^|/)([^/]*norm|([^/]*_)?(rms|ln))(_?[a-z]?\d*)"  # a normalisation's name

PER_ENTRY = Layout(rules=(Rule("", _ENTRIES),))
"""Every entry of every leaf is a neuron: the known per-parameter optimizers.

The state then holds two numbers per entry; one with ``store_rate=False`` of
`scale_per_neuron`.
"""

PER_LAYER = Layout(rules=(Rule("", Neurons(output=())),))
"""Every leaf is one neuron."""

FLAX = Layout(
    rules=(
        Rule(r"(^|/)(bias|scale)$", _ENTRIES),
        Rule(r"(^|/)embedding$", _ROWS, ranks=(2,)),
        Rule(r"(^|/)(query|key|value)/kernel$", Neurons(output=(1, 2)), ranks=(3,)),
        Rule(r"(?i)(att(entio)?n|mha)[^/]*/out/kernel$", Neurons(), ranks=(3,)),
        Rule(r"(?i)conv_?local[^/]*/kernel$", Neurons(output=(0, -1)), ranks=(3,)),
        Rule(r"(?i)conv_?local[^/]*/kernel$", Neurons(output=(0, 1, -1)), ranks=(4,)),
        Rule(r"(?i)conv[^/]*(/\d+|/[ih]h)?/kernel$", Neurons(), ranks=(3, 4, 5)),
    )
)
"""Flax: kernels (..., in, out), of queries, keys and values (in, heads, dim), of local
convolutions (positions, in, out), embeddings (token, feature), biases per entry."""

_ATTENTION = r"(^|/)(query|key)/kernel$"
_CONVOLUTION = r"(?i)conv[^/]*/kernel$"
_WHOLE = Neurons(output=())

ADAM_MINI = Layout(
    rules=(
        Rule(r"(^|/)bias$", _ENTRIES),
        Rule(r"(^|/)embedding$", _ROWS, ranks=(2,)),
        Rule(_ATTENTION, Neurons(output=(1,)), ranks=(3,)),
        Rule(r"(^|/)value/kernel$", Neurons(output=(1, 2)), ranks=(3,)),
        Rule(r"(?i)(att(entio)?n|mha)[^/]*/out/kernel$", Neurons(), ranks=(3,)),
        Rule(r"(^|/)kernel$", Neurons(), ranks=(2,)),
        Rule(_CONVOLUTION, _WHOLE),
        Rule("", _WHOLE, ranks=(0, 1, 2)),
        Rule("", _WHOLE, ranks=range(3, 9)),  # perhaps a stack of what stands above
    )
)
"""Flax, with the partition of Adam-mini's authors: one number per head of queries and
keys, per neuron of values, attention's output and every linear layer, the head's
included, per token of an embedding, per entry of a bias, one for any other leaf.
`describe` marks leaves of rank 3 and more that are none of these: override stacks."""

SLIM_ADAM = Layout(
    rules=(
        Rule(r"(^|/)(bias|scale)$", _ENTRIES),
        Rule(r"(^|/)embedding$", _ROWS, ranks=(2,)),
        Rule(_ATTENTION, Neurons(output=(1, 2)), ranks=(3,)),
        Rule(r"(^|/)value/kernel$", _ROWS, ranks=(3,)),
        Rule(r"(?i)(att(entio)?n|mha)[^/]*/out/kernel$", Neurons((0, 1)), ranks=(3,)),
        Rule(r"(?i)(^|/)(lm_)?head/kernel$", Neurons(), ranks=(2,)),
        Rule(r"(^|/)kernel$", _ROWS, ranks=(2,)),
        Rule(_CONVOLUTION, _ENTRIES),
        Rule("", _ENTRIES, ranks=(0, 1, 2)),
        Rule("", _ENTRIES, ranks=range(3, 9)),  # perhaps a stack of what stands above
    )
)
"""Flax, with the axes of SlimAdam's authors: one number per neuron of queries and keys,
per token of an embedding and of a linear layer named head, per input (shared over the
fan-out) of values, attention's output and other linear layers, per entry elsewhere.
`describe` marks leaves of rank 3 and more that are none of these: override stacks."""

TORCH = Layout(
    rules=(
        Rule(r"(^|[/_])(bias(_\w+)?|g)$", _ENTRIES),
        Rule(rf"(?i){NORM}/weight$", _ENTRIES),
        Rule(r"(?i)conv[^/]*(/\d+)?/weight$", _ROWS, ranks=(3, 4, 5)),
    ),
    fallback=_ROWS,
)
"""PyTorch and Equinox: weights (out, in, ...), biases per entry.

Not so torch's transposed convolutions, (in, out, ...): override them.
"""


def _haiku(copies: int) -> tuple[Rule, ...]:
    """Rules of Haiku's layers under so many nested ``layer_stack``."""
    inside = "__layer_stack.*" * copies
    stack = tuple(range(copies))
    taps = tuple(copies + 2 + taps for taps in (1, 2, 3))
    rows = Neurons((copies,), stack)
    convolution = rf"{inside}conv[^/]*/([^/]*_to_hidden/)?w$"
    return (
        Rule(rf"{inside}(^|/)(b|scale|offset)$", Neurons(..., stack)),
        Rule(rf"{inside}(^|/)embeddings$", rows, ranks=(copies + 2,)),
        Rule(rf"{inside}conv[^/]*transpose[^/]*/w$", Neurons((-2,), stack), ranks=taps),
        Rule(convolution, Neurons(stack=stack), ranks=taps),
    )


def _haiku_stack(copies: int) -> tuple[Rule, ...]:
    """Rules of whatever else is under so many nested ``layer_stack``."""
    inside, stack = "__layer_stack.*" * copies, tuple(range(copies))
    vectors, others = range(copies, copies + 2), range(copies + 2, copies + 6)
    return (
        *_haiku(copies),
        Rule(inside, Neurons(..., stack), ranks=tuple(vectors)),
        Rule(inside, Neurons(stack=stack), ranks=tuple(others)),
    )


HAIKU = Layout(rules=(*_haiku_stack(2), *_haiku_stack(1), *_haiku(0)))
"""Haiku: weights (..., in, out), of transposed convolutions (..., out, in), embeddings
(token, feature), biases per entry; ``layer_stack`` is known by its name."""
