"""The small vocabulary of edits: what may be done to experts and routers while a model runs.

An `Edit` is data: which experts, what is done, where in the text. Nothing happens until
`moescope.models.editing.edited` applies it. A kind of edit is one class in one file of this folder;
`kinds` lists them in the order in which they are applied.
"""

from moescope.models.edits.bias import bias
from moescope.models.edits.edit import Edit, WeightEdit
from moescope.models.edits.experts import check_exist, parse_experts
from moescope.models.edits.force import force
from moescope.models.edits.kinds import (
    BY_NAME,
    KINDS,
    Edits,
    as_edits,
    by_kind,
    check_edits,
    num_chosen,
)
from moescope.models.edits.mask import mask
from moescope.models.edits.scale import scale
from moescope.models.edits.top_k import top_k
from moescope.models.edits.zero import zero

__all__ = [
    "BY_NAME",
    "KINDS",
    "Edit",
    "Edits",
    "WeightEdit",
    "as_edits",
    "bias",
    "by_kind",
    "check_edits",
    "check_exist",
    "force",
    "mask",
    "num_chosen",
    "parse_experts",
    "scale",
    "top_k",
    "zero",
]
