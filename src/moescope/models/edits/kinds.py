"""The kinds of edits, in the order in which those of one layer are applied.

The order is fixed, whatever the order in which edits were given, so edits compose:

1. on the router's logits: ``bias`` adds, then ``mask`` sets to minus infinity;
2. on the router: ``top_k`` changes how many experts are chosen (of several, the last given holds);
   then the model's own router decides, with its own scoring, groups, biases and normalisation;
3. on the choice: ``force`` brings an expert into the top k;
4. on the weights: ``zero`` (first where the rest is scaled up), then ``scale``.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from moescope.models.anatomy import MoELayer
from moescope.models.edits.bias import Bias
from moescope.models.edits.edit import Edit
from moescope.models.edits.force import Force
from moescope.models.edits.mask import Mask
from moescope.models.edits.scale import Scale
from moescope.models.edits.top_k import TopK
from moescope.models.edits.zero import Zero

__all__ = ["BY_NAME", "KINDS", "by_kind", "num_chosen"]

KINDS: tuple[type[Edit], ...] = (Bias, Mask, TopK, Force, Zero, Scale)


BY_NAME = {kind.kind: kind for kind in KINDS}


def by_kind(edits: Iterable[Edit]) -> Iterator[tuple[type[Edit], list[Edit]]]:
    """The kinds that occur, in the order of application, each with its edits as they were given."""
    several = list(edits)
    for kind in KINDS:
        if own := [edit for edit in several if type(edit) is kind]:
            yield kind, own


def num_chosen(edits: Sequence[Edit], layer: MoELayer) -> int:
    """How many experts a token of this layer takes under these edits."""
    wanted = [edit.num_chosen for edit in edits if edit.num_chosen is not None]
    return wanted[-1] if wanted else layer.top_k
