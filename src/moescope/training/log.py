"""What training writes down: tables of steps, layers and held-out domains, as Parquet.

Rows live in memory and are written as a whole, atomically, at every checkpoint and look; on resume
the rows after the checkpoint are dropped, so no step is ever there twice.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from moescope.errors import RunError
from moescope.files import is_intact, require_intact
from moescope.run.store import write_parquet
from moescope.words import said_by

_COLUMNS = {
    "steps": (
        "step", "tokens", "loss", "load_balancing_loss", "router_z_loss", "importance_loss",
        "load_loss", "dropped_share", "learning_rate", "gradient_norm", "tokens_per_second",
    ),
    "layers": (
        "step", "layer", "tokens", "cv", "max_violation", "load_entropy", "router_entropy",
        "dead_share", "dropped_share", "rerouted_share", "saturation", "noise_scale", "load",
    ),
    "drops": ("step", "position_from", "position_to", "dropped_share"),
    "domains": ("step", "domain", "routing", "tokens", "loss", "unigram", "unigram_domain"),
}  # fmt: skip
"""Of each table, in their order."""

_WHOLE = ("step", "tokens", "layer", "position_from", "position_to")
_TEXT = ("domain", "routing")
_LISTS = ("load",)
_TYPES = (
    dict.fromkeys(_WHOLE, pa.int64())
    | dict.fromkeys(_TEXT, pa.string())
    | dict.fromkeys(_LISTS, pa.list_(pa.float32()))
)
"""A column is of one type in every table: float64 unless it is here."""


class TrainingLog:
    """The tables of a training run.

    - ``steps``: one row a step; losses in nats, balancing losses as means over layers.
    - ``layers``: routing of one step's batch, every ``log_every`` steps: CV and MaxVio of the load
      (0 even), entropies as shares of their largest, share of experts that no token chose,
      saturation against the evaluation before (chance K/E), the mean standard deviation of the
      noise (noisy top-k), and the load of every expert, a share of assignments (even 1/E).
    - ``drops``: the newest step's dropped assignments by position in the sequence.
    - ``domains``: held-out loss and the two unigram baselines, nats per token; ``routing`` is
      ``recipe``, ``stock`` (as a stock model routes) where the two differ, and ``saved`` at the
      steps whose model was written: routed as stock, with the weights of the file (bfloat16).
    """

    def __init__(self, folder: Path, keep_until: int | None = None) -> None:
        """Open the log of a run.

        Args:
            folder: where the Parquet files are.
            keep_until: resume: keep what was written up to this step. None: start anew.
        """
        self.folder = folder
        self.rows: dict[str, list[dict[str, Any]]] = {name: [] for name in _COLUMNS}
        if keep_until is None:
            return
        for name in _COLUMNS:
            path = folder / f"{name}.parquet"
            if path.is_file():
                kept = pq.read_table(require_intact(folder.parent, f"log/{path.name}")).to_pylist()
                self.rows[name] = [row for row in kept if row["step"] <= keep_until]

    def add(self, table: str, **row: Any) -> None:
        """Add a row; columns that are not given stay empty."""
        self.rows[table].append(row)

    def replace(self, table: str, rows: list[dict[str, Any]]) -> None:
        """Put rows in the place of all there were."""
        self.rows[table] = rows

    def write(self) -> None:
        """Write every table, atomically.

        Raises:
            WriteError: disk full or no permission.
        """
        for name in _COLUMNS:
            write_parquet(self.folder / f"{name}.parquet", self.table(name))

    def table(self, name: str) -> pa.Table:
        """One table as Arrow."""
        schema = pa.schema([(c, _TYPES.get(c, pa.float64())) for c in _COLUMNS[name]])
        columns = {c: [row.get(c) for row in self.rows[name]] for c in _COLUMNS[name]}
        return pa.table(columns, schema=schema)

    @staticmethod
    def read(folder: Path, name: str) -> pa.Table:
        """A table of a training run's folder.

        Raises:
            RunError: the folder holds no training log, or the table was altered.
        """
        path = folder / "log" / f"{name}.parquet"
        if not path.is_file():
            raise RunError(
                f"{folder} holds no log/{name}.parquet; expected a folder of moescope train"
            )
        if is_intact(folder, f"log/{name}.parquet") is False:
            require_intact(folder, f"log/{name}.parquet")
        try:
            return pq.read_table(path)
        except (OSError, pa.ArrowException) as error:
            raise RunError(f"{path} cannot be read: {said_by(error)}; restore it") from error
