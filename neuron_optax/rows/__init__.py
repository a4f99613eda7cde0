"""Tables of which a batch touches few rows: only those are read, moved and written.

`unique_rows` finds them, `take_rows` reads them, the transformations of `row_chain` see
them alone, and `apply_row_updates` writes them back.
"""

from neuron_optax.rows.chains import partition_rows, row_chain
from neuron_optax.rows.ids import Rows, unique_rows
from neuron_optax.rows.states import RowState, lazy_rows
from neuron_optax.rows.tables import apply_row_updates, embedding_bag, take_rows

__all__ = [
    "RowState",
    "Rows",
    "apply_row_updates",
    "embedding_bag",
    "lazy_rows",
    "partition_rows",
    "row_chain",
    "take_rows",
    "unique_rows",
]
