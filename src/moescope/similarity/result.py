"""The similarity of a model's experts as it is kept: a table of pairs, maps, and what was done.

    DIR/similarity.json       settings, hashes, coverage, every layer in short, agreement of methods
    DIR/similarity.parquet    one row for each layer, method and pair of experts
    DIR/maps.parquet          points of the maps, where there are any

Needs no model. `open_similarity` refuses files that were changed after they were written.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from moescope.errors import BadInputError, RunError
from moescope.files import claim, remove, sha256_of, write_bytes
from moescope.run.store import write_parquet

__all__ = ["FORMAT", "Similarity", "open_similarity"]

FORMAT = 1
"""Version of the files."""

_PAIRS, _MAPS, _ABOUT = "similarity.parquet", "maps.parquet", "similarity.json"


@dataclass(frozen=True)
class Similarity:
    """What `moescope.similarity.compare.compare_experts` found.

    Attributes:
        pairs: one row per layer, method and pair of experts (``expert_a`` < ``expert_b``).
        about: what was done and every layer in short; JSON values only.
        maps: points of the maps; no rows without maps.
    """

    pairs: pa.Table
    about: dict[str, Any]
    maps: pa.Table = field(default_factory=lambda: pa.table({}))

    def __repr__(self) -> str:
        layers = len(self.about["layers"])
        return f"<Similarity of experts in {layers} layers: {', '.join(self.methods)}>"

    def to_arrow(self) -> pa.Table:
        """The pairs as an Arrow table."""
        return self.pairs

    def to_pandas(self) -> Any:
        """The pairs as a data frame."""
        return self.pairs.to_pandas()

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
        if (
            layer not in experts
            or method not in self.methods
            or column not in self.pairs.schema.names
        ):
            raise BadInputError(
                f"no {column!r} of layer {layer} by {method!r}; layers: "
                f"{', '.join(map(str, experts))}; methods: {', '.join(self.methods)}"
            )
        wanted = pc.and_(
            pc.equal(self.pairs["layer"], layer), pc.equal(self.pairs["method"], method)
        )
        rows = self.pairs.filter(wanted)
        made = np.full((experts[layer], experts[layer]), np.nan)
        a, b = rows["expert_a"].to_numpy(), rows["expert_b"].to_numpy()
        made[a, b] = made[b, a] = rows[column].to_numpy().astype(np.float64)
        if column == "value":
            known = np.isfinite(made).any(1)
            made[known, known] = 1.0
        return made

    def save(self, folder: str | Path) -> Path:
        """Write the files and return the folder; the JSON, which names the others, comes last.

        Raises:
            WriteError: disk full or no permission.
        """
        with claim(folder, "similarity") as target:
            files = {_PAIRS: write_parquet(target / _PAIRS, self.pairs)}
            if self.maps.num_rows:
                files[_MAPS] = write_parquet(target / _MAPS, self.maps)
            else:
                remove(target / _MAPS)
            about = {"format": FORMAT, **self.about, "files": files}
            text = json.dumps(about, indent=1, ensure_ascii=False, allow_nan=False)
            write_bytes(target / _ABOUT, text.encode("utf-8", "replace"))
            return target


def open_similarity(folder: str | Path) -> Similarity:
    """Read what `Similarity.save` wrote.

    Raises:
        RunError: nothing there, another format, or a file that was changed.
    """
    path = Path(folder)
    try:
        about = json.loads((path / _ABOUT).read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise RunError(
            f"{path} holds no {_ABOUT}; make one with: moescope similarity MODEL CORPUS -o {path}"
        ) from error
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise RunError(f"{path / _ABOUT} is damaged ({error}); compute it again") from error
    if not isinstance(about, dict) or about.get("format") != FORMAT:
        raise RunError(f"{path / _ABOUT}: not of format {FORMAT}; compute it again")
    files = about.pop("files", None)
    about.pop("format")
    if not isinstance(files, dict) or not {_PAIRS} <= set(files) <= {_PAIRS, _MAPS}:
        raise RunError(f"{path / _ABOUT} names other files than those of a similarity")
    for name, sha256 in files.items():
        file = path / name
        if not file.is_file() or sha256_of(file) != sha256:
            raise RunError(
                f"{file} is missing or was changed after it was written; compute it again"
            )
    maps = pq.read_table(path / _MAPS) if _MAPS in files else pa.table({})
    return Similarity(pq.read_table(path / _PAIRS), about, maps)


def plain(value: Any) -> Any:
    """Any number, array, list or dict as JSON values; what is not finite becomes None."""
    if isinstance(value, dict):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [plain(v) for v in value]
    if isinstance(value, np.ndarray | np.generic):
        return plain(value.tolist())
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
