"""What was measured with the model, kept beside the run, and read back without the model.

``RUN/profiles/measured-KEY.*``: arrays by cell (safetensors), the tokens that experts promote and
suppress and their contexts (Parquet, for people too), and a JSON that says what they are. The JSON
is written last, so a measurement that was cut short is measured again. The key is a hash of the
run, the model, the text and the version: nothing is ever shown for another one.
"""

from __future__ import annotations

import hashlib
import itertools
import json
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from safetensors.numpy import load as load_tensors

from moescope.files import are_intact, write_bytes
from moescope.profiles.cells import Cells
from moescope.profiles.contexts import Context, WindowTexts
from moescope.profiles.measure import Measured
from moescope.profiles.pushes import Pushed, rank_pushes
from moescope.result import plain
from moescope.run.reader import Run
from moescope.run.store import write_parquet, write_tensors

FOLDER = "profiles"
"""Folder in a run that profiles are written to."""

_FORMAT = 1

_SIDES = ("promoted", "suppressed")


@dataclass(frozen=True)
class StoredMeasures:
    """A measurement, read back.

    Attributes:
        about: ``text`` (tokens and documents by domain), ``compared``, ``absent``, ``lens``,
            ``settings``, ``norms`` (names, in the order of ``arrays["norms"]``).
        arrays: the figures of `Measured`, and ``push_…`` as in `Pushed`, by cell.
        pushes: rows of promoted and suppressed tokens: layer, expert, side, rank, token_id, token,
            own, others, beyond, half_a, half_b.
        contexts: rows of contexts: layer, expert, rank, and the fields of `Context`.
    """

    about: dict[str, Any]
    arrays: dict[str, NDArray[Any]]
    pushes: pa.Table
    contexts: pa.Table


def measure_key(run: Run, tokens_per_domain: int, window_tokens: int, dtype: str) -> str:
    """What a measurement depends on, as twelve hexadecimal digits."""
    model, state = run.manifest.model, run.manifest.state
    parts = {
        "format": _FORMAT,
        "moescope": version("moescope"),
        "state": state.sha256 if state else None,
        "model": [model.get(f"{w}_sha256") for w in ("config", "weights", "tokenizer")],
        "tokens_per_domain": tokens_per_domain,
        "window_tokens": window_tokens,
        "seed": run.manifest.options["seed"],
        "dtype": dtype,
    }
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:12]


def _paths(run: Run, key: str) -> dict[str, Path]:
    names = {
        "arrays": ".safetensors", "pushes": "-lens.parquet", "contexts": "-contexts.parquet",
        "about": ".json",
    }  # fmt: skip
    return {part: run.path / FOLDER / f"measured-{key}{end}" for part, end in names.items()}


def keep_measures(
    run: Run,
    key: str,
    made: Measured,
    texts: WindowTexts,
    token_text: Any,
    cells: Cells,
    settings: dict[str, Any],
) -> StoredMeasures:
    """Rank what was measured and write it.

    Raises:
        WriteError: disk full or no permission.
    """
    arrays = dict(made.figures)
    arrays["norms"] = np.stack([*made.norms.values(), np.full(cells.total, np.nan)])[:-1]
    lens, pushed, about_lens = made.lens, dict[int, Pushed](), None
    if lens is not None:
        pushed = {slot: rank_pushes(lens, pushes) for slot, pushes in made.pushes.items()}
        about_lens = {
            "norm": lens.norm,
            "kind": "LayerNorm" if lens.centred else "RMSNorm",
            "note": lens.note,
            "paths": {n: f for n, f in lens.paths.items() if isinstance(f, float)},
        }
    arrays |= _push_arrays(pushed, cells)
    about = plain({
        "settings": settings, "text": made.text, "compared": made.compared, "absent": made.absent,
        "norms": list(made.norms), "lens": about_lens,
    })  # fmt: skip
    stored = StoredMeasures(
        about, arrays, _push_rows(pushed, cells, token_text), _context_rows(made, texts, cells)
    )
    paths = _paths(run, key)
    with run.writing():
        write_tensors(paths["arrays"], arrays)
        write_parquet(paths["pushes"], stored.pushes)
        write_parquet(paths["contexts"], stored.contexts)
        write_bytes(paths["about"], json.dumps(about, indent=1, ensure_ascii=False).encode())
    return stored


def read_measures(run: Run, key: str) -> StoredMeasures | None:
    """A measurement that was kept, or None when there is none or it is damaged."""
    paths = _paths(run, key)
    if not are_intact(run.path, [f"{FOLDER}/{p.name}" for p in paths.values()]):
        return None
    try:
        return StoredMeasures(
            json.loads(paths["about"].read_text(encoding="utf-8")),
            dict(load_tensors(paths["arrays"].read_bytes())),
            pq.read_table(paths["pushes"]),
            pq.read_table(paths["contexts"]),
        )
    except Exception:  # whatever is wrong with a file that can be made again, it is made again
        return None


def _push_arrays(pushed: dict[int, Pushed], cells: Cells) -> dict[str, NDArray[Any]]:
    out: dict[str, NDArray[Any]] = {
        "push_agreement": np.full(cells.total, np.nan),
        "push_spread": np.full(cells.total, np.nan),
        "push_overlap": np.full((2, cells.total), np.nan),
        "push_counts": np.zeros((2, cells.total), np.int64),
    }
    for slot, made in pushed.items():
        cut = cells.of_layer(cells.layers[slot])
        out["push_agreement"][cut], out["push_spread"][cut] = made.agreement, made.spread
        out["push_overlap"][:, cut], out["push_counts"][:, cut] = made.overlap, made.counts
    return out


def _push_rows(pushed: dict[int, Pushed], cells: Cells, token_text: Any) -> pa.Table:
    parts: dict[str, list[NDArray[Any]]] = {}
    for slot, made in pushed.items():
        side, expert, rank = np.nonzero(made.ids >= 0)
        at = (side, expert, rank)
        columns = {
            "layer": np.full(side.size, cells.layers[slot].layer_idx),
            "expert": expert,
            "side": side,
            "rank": rank,
            "token_id": made.ids[at],
            "own": made.own[at],
            "others": made.own[at] - made.beyond[at],
            "beyond": made.beyond[at],
            "half_a": made.halves[0][at],
            "half_b": made.halves[1][at],
        }
        for name, values in columns.items():
            parts.setdefault(name, []).append(values)
    joined = {name: np.concatenate(values).tolist() for name, values in parts.items()}
    sides = [_SIDES[side] for side in joined.get("side", ())]
    texts = token_text(joined.get("token_id", []))
    return pa.table({
        **joined, "side": pa.array(sides, pa.string()), "token": pa.array(texts, pa.string()),
    })  # fmt: skip


def _context_rows(made: Measured, texts: WindowTexts, cells: Cells) -> pa.Table:
    rows: dict[str, list[Any]] = {n: [] for n in ("layer", "expert", "rank", *Context._fields)}
    for slot, found in enumerate(made.candidates):
        layer = cells.layers[slot]
        ends = np.searchsorted(found.expert, np.arange(layer.num_experts + 1))
        for e, cut in enumerate(itertools.starmap(slice, itertools.pairwise(ends))):
            picked = texts.pick(found.place[cut], found.contribution[cut], found.weight[cut])
            for rank, context in enumerate(picked):
                values = (layer.layer_idx, e, rank, *context)
                for column, value in zip(rows.values(), values, strict=True):
                    column.append(value)
    kinds = {"doc": pa.string(), "domain": pa.string(), "before": pa.string(),
             "token": pa.string(), "after": pa.string(), "contribution": pa.float64(),
             "weight": pa.float64()}  # fmt: skip
    return pa.table({n: pa.array(v, kinds.get(n, pa.int64())) for n, v in rows.items()})
