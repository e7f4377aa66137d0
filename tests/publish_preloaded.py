"""For a process from which publishes are forked: imported and compiled, so that they begin at once.

Else most of a publish that is to be killed at a random moment would be the loading of kernels.
"""

import pyarrow as pa

from exports.redis_commands import to_commands

_ROW = {
    "list_id": "a",
    "rank": pa.scalar(1, pa.int32()),
    "product_id": "p",
    "score": 1.0,
    "source": "hybrid",
    "reason": "why",
}
_ROWS = pa.table({name: pa.array([value]) for name, value in _ROW.items()})

for _ in to_commands(_ROWS.to_batches(), "k"):
    pass
