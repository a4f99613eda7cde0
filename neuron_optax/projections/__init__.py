"""Changes of an update, or of weights, per neuron or per layer; chain them anywhere.

They find the neurons as the strategies do, and remember nothing of their own.
"""

from neuron_optax.projections.changes import (
    centralize_per_neuron,
    clip_per_neuron,
    normalize_per_neuron,
)
from neuron_optax.projections.guards import (
    skip_nonfinite,
    where_touched,
    zero_nonfinite,
)
from neuron_optax.projections.isolation import (
    ChangeState,
    IsolationState,
    count_changes,
    isolate_nonfinite,
)
from neuron_optax.projections.matrices import (
    aspect_ratio,
    from_matrices,
    is_matrix,
    matrix_shape,
    newton_schulz,
    on_matrices,
    orthogonalize,
    preserve_norm,
    scale_by_shape,
    to_matrices,
)
from neuron_optax.projections.weights import (
    limit_norms,
    project_neurons,
    project_steps,
    projected,
)

__all__ = [
    "ChangeState",
    "IsolationState",
    "aspect_ratio",
    "centralize_per_neuron",
    "clip_per_neuron",
    "count_changes",
    "from_matrices",
    "is_matrix",
    "isolate_nonfinite",
    "limit_norms",
    "matrix_shape",
    "newton_schulz",
    "normalize_per_neuron",
    "on_matrices",
    "orthogonalize",
    "preserve_norm",
    "project_neurons",
    "project_steps",
    "projected",
    "scale_by_shape",
    "skip_nonfinite",
    "to_matrices",
    "where_touched",
    "zero_nonfinite",
]
