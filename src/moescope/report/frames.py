"""Tables as columns of numpy arrays, and numbers as the page wants them.

Nothing here knows what a column means. Every number leaves through `tidy`: rounded, and ``None``
where it is not finite, so that neither NaN nor infinity can reach JSON.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from moescope.result import plain as json_values
from moescope.words import printable

_UNUSUAL = re.compile("[^\n\t -~]")
"""What may need a closer look: most text has none of it."""


class Frame:
    """Columns of equal length."""

    def __init__(self, columns: dict[str, NDArray[Any]]) -> None:
        self.columns = columns

    @classmethod
    def of(cls, table: pa.Table) -> Frame:
        """From an Arrow table; texts become object arrays."""
        return cls({name: _array(table[name]) for name in table.column_names})

    def __len__(self) -> int:
        return len(next(iter(self.columns.values()), ()))

    def __getitem__(self, name: str) -> NDArray[Any]:
        return self.columns[name]

    def where(self, **wanted: object) -> Frame:
        """The rows whose columns equal the given values; a missing column gives no rows."""
        if any(name not in self.columns for name in wanted):
            return Frame({name: column[:0] for name, column in self.columns.items()})
        keep = np.ones(len(self), np.bool_)
        for name, value in wanted.items():
            keep &= self.columns[name] == value
        return self.take(keep)

    def take(self, index: NDArray[Any]) -> Frame:
        """Rows by mask or by index."""
        return Frame({name: column[index] for name, column in self.columns.items()})

    def tidy(self, names: Iterable[str]) -> dict[str, list[Any]]:
        """Some columns as lists of JSON values."""
        return {name: tidy(self.columns[name]) if name in self.columns else [] for name in names}


def _array(column: pa.ChunkedArray) -> NDArray[Any]:
    if pa.types.is_floating(column.type):
        return np.asarray(column.to_numpy(), np.float64)
    if pa.types.is_integer(column.type):
        return np.asarray(column.to_numpy(), np.int64)
    return np.asarray(column.to_pylist(), dtype=object)


def tidy(value: Any, digits: int = 4) -> Any:
    """`moescope.result.plain` with as many digits as a page shows."""
    return json_values(value, digits)


def legible(value: Any) -> Any:
    """JSON values whose texts have nothing that shows as an empty box; see `printable`."""
    if isinstance(value, str):
        return printable(value) if _UNUSUAL.search(value) else value
    if isinstance(value, list | tuple):
        return [legible(v) for v in value]
    if isinstance(value, Mapping):
        return {legible(k): legible(v) for k, v in value.items()}
    return value


def scaled(values: NDArray[np.float64], factor: int = 10_000) -> list[int | None]:
    """Shares as whole numbers of 1/factor: a third of the size of decimals."""
    known = np.isfinite(values)
    whole = np.rint(np.where(known, values, 0.0) * factor).astype(np.int64).tolist()
    return [w if k else None for w, k in zip(whole, known.tolist(), strict=True)]


def times(value: float) -> str:
    """A ratio: two decimals below 10."""
    if not math.isfinite(value):
        return "unbounded"
    return f"{value:.2f}" if value < 10 else f"{value:,.0f}"


def bits(value: float) -> str:
    """Information: two decimals, four when tiny; the sign is a minus, and 0 has none."""
    text = f"{value:.4f}" if abs(value) < 0.0995 else f"{value:.2f}"
    return text.replace("-0.0000", "0.0000").replace("-", "−")


def p_text(value: float) -> str:
    """'p < 0.001' or 'p = 0.012'."""
    if not math.isfinite(value):
        return "not tested"
    return "p < 0.001" if value < 0.001 else f"p = {value:.3f}"


def number(count: float) -> str:
    """1234567 as '1,234,567'."""
    return f"{int(count):,}"


def layer_rows(
    layers: Iterable[int], num_experts: Iterable[int], top_k: Iterable[int]
) -> list[dict[str, int]]:
    """MoE layers for the scripts of a page."""
    numbers = zip(layers, num_experts, top_k, strict=True)
    return [{"layer": n, "experts": e, "top_k": k} for n, e, k in numbers]


def plain(value: Any) -> str:
    """A setting as a reader reads it."""
    if value is None or value == "" or value == []:
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list | tuple):
        return ", ".join(map(plain, value))
    if isinstance(value, dict):
        return json.dumps(value, ensure_ascii=False, default=str)
    return f"{value:.12g}" if isinstance(value, float) else str(value)


def settings(sections: Mapping[str, Mapping[str, Any]]) -> list[tuple[str, list[tuple[str, str]]]]:
    """Sections of names and values, for the macro ``settings`` of a page."""
    return [
        (title, [(str(k).replace("_", " "), plain(v)) for k, v in entries.items()])
        for title, entries in sections.items()
    ]
