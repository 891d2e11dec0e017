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

_SCHEMAS = {
    "steps": {
        "step": pa.int64(),
        "tokens": pa.int64(),
        "loss": pa.float64(),
        "load_balancing_loss": pa.float64(),
        "router_z_loss": pa.float64(),
        "importance_loss": pa.float64(),
        "load_loss": pa.float64(),
        "dropped_share": pa.float64(),
        "learning_rate": pa.float64(),
        "gradient_norm": pa.float64(),
        "tokens_per_second": pa.float64(),
    },
    "layers": {
        "step": pa.int64(),
        "layer": pa.int64(),
        "tokens": pa.int64(),
        "cv": pa.float64(),
        "max_violation": pa.float64(),
        "load_entropy": pa.float64(),
        "router_entropy": pa.float64(),
        "dead_share": pa.float64(),
        "dropped_share": pa.float64(),
        "rerouted_share": pa.float64(),
        "saturation": pa.float64(),
    },
    "loads": {
        "step": pa.int64(),
        "layer": pa.int64(),
        "expert": pa.int64(),
        "load": pa.float64(),
    },
    "drops": {
        "step": pa.int64(),
        "position_from": pa.int64(),
        "position_to": pa.int64(),
        "dropped_share": pa.float64(),
    },
    "domains": {
        "step": pa.int64(),
        "domain": pa.string(),
        "routing": pa.string(),
        "tokens": pa.int64(),
        "loss": pa.float64(),
        "unigram": pa.float64(),
        "unigram_domain": pa.float64(),
    },
}


class TrainingLog:
    """The tables of a training run.

    - ``steps``: one row a step; losses in nats, balancing losses as means over layers.
    - ``layers``: routing of one step's batch, every ``log_every`` steps: CV and MaxVio of the load
      (0 even), entropies as shares of their largest, share of experts that no token chose,
      saturation against the evaluation before (chance K/E).
    - ``loads``: the newest step's load of each expert, a share of assignments (even 1/E).
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
        self.rows: dict[str, list[dict[str, Any]]] = {name: [] for name in _SCHEMAS}
        if keep_until is None:
            return
        for name in _SCHEMAS:
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
        for name in _SCHEMAS:
            write_parquet(self.folder / f"{name}.parquet", self.table(name))

    def table(self, name: str) -> pa.Table:
        """One table as Arrow."""
        schema = pa.schema(list(_SCHEMAS[name].items()))
        columns = {c: [row.get(c) for row in self.rows[name]] for c in _SCHEMAS[name]}
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
        return pq.read_table(path)
