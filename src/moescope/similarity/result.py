"""The similarity of a model's experts as it is kept: a table of pairs, maps, and what was done.

Needs no model. `open_similarity` reads what `Similarity.save` wrote.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from moescope.errors import BadInputError
from moescope.files import claim
from moescope.measure.journal import drop_journal
from moescope.result import Result, Tabular, read_result
from moescope.similarity.answers import similarity_answers, similarity_notes
from moescope.words import counted

SIMILARITY = "similarity"
"""The kind of result that this is."""


@dataclass(frozen=True)
class Similarity(Tabular):
    """What `moescope.similarity.compare.compare_experts` found.

    Attributes:
        pairs: one row per layer, method and pair of experts (``expert_a`` < ``expert_b``).
        about: what was done and every layer in short; JSON values only.
        maps: points of the maps; no rows without maps.
        identity: everything that decided the numbers.
    """

    pairs: pa.Table
    about: dict[str, Any]
    maps: pa.Table = field(default_factory=lambda: pa.table({}))
    identity: dict[str, Any] = field(default_factory=dict)

    def __repr__(self) -> str:
        layers = len(self.about["layers"])
        return f"<Similarity of experts in {counted(layers, 'layer')}: {', '.join(self.methods)}>"

    def to_arrow(self) -> pa.Table:
        """The pairs as an Arrow table."""
        return self.pairs

    @property
    def methods(self) -> list[str]:
        """The methods that were computed, in the order in which they were asked for."""
        return list(dict.fromkeys(row["method"] for row in self.about["summary"]))

    def matrix(self, layer: int, method: str, column: str = "value") -> NDArray[np.float64]:
        """One column of one layer and method as a symmetric matrix (E, E).

        The diagonal is 1 for experts that have any value, else NaN; of other columns it is NaN.

        Raises:
            BadInputError: this layer, method or column was not computed.
        """
        experts = {row["layer"]: row["experts"] for row in self.about["layers"]}
        computed = layer in experts and method in self.methods
        if not computed or column not in self.pairs.schema.names:
            raise BadInputError(
                f"no {column!r} of layer {layer} by {method!r}; layers: "
                f"{', '.join(map(str, experts))}; methods: {', '.join(self.methods)}"
            )
        rows = self.pairs.filter((pc.field("layer") == layer) & (pc.field("method") == method))
        made = np.full((experts[layer], experts[layer]), np.nan)
        a, b = rows["expert_a"].to_numpy(), rows["expert_b"].to_numpy()
        made[a, b] = made[b, a] = rows[column].to_numpy().astype(np.float64)
        if column == "value":
            known = np.isfinite(made).any(1)
            made[known, known] = 1.0
        return made

    def save(self, folder: str | Path) -> Path:
        """Write the result (see `moescope.result`) and return the folder.

        Raises:
            RunError: the folder holds something else.
            WriteError: disk full or no permission.
        """
        tables = {"pairs": self.pairs} | ({"maps": self.maps} if self.maps.num_rows else {})
        with claim(folder, SIMILARITY) as target:
            answers, notes = similarity_answers(self.about), similarity_notes(self.about)
            made = Result(
                SIMILARITY, self.identity, tables, tuple(answers), tuple(notes), self.about
            )
            made.save(target)
            drop_journal(target)
            return target


def open_similarity(folder: str | Path) -> Similarity:
    """Read what `Similarity.save` wrote.

    Raises:
        RunError: nothing there, another version, or a file that was changed.
    """
    found = read_result(folder, SIMILARITY)
    maps = found.tables.get("maps", pa.table({}))
    return Similarity(found.tables["pairs"], dict(found.about), maps, dict(found.identity))
