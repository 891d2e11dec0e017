"""What workers are told, and the folder ``RUN/parts`` in which their runs grow.

``parts/launch.json`` says what is traced and into how many shards it was cut, so that an
interrupted launch goes on with the same shards and nothing else. It starts no process.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict

from moescope.corpus import CorpusSpec, Shard
from moescope.errors import RunError
from moescope.files import LEDGER, LOCK, owned, remove, remove_result, write_bytes
from moescope.given import MOST_SHARDS
from moescope.models.spec import EngineName, ModelSpec
from moescope.run.manifest import MANIFEST, has_progress, read_manifest
from moescope.run.options import TraceOptions
from moescope.run.same import require_same
from moescope.words import counted

PARTS = "parts"
"""The folder of the parts, inside that of the run."""

_LAUNCH = "launch.json"


class Job(BaseModel):
    """What every worker does, the shard aside."""

    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=())

    model: ModelSpec
    engine: EngineName = "auto"
    memory: str | None = None
    corpus: CorpusSpec
    options: TraceOptions

    def identity(self) -> dict[str, dict[str, Any]]:
        """What decides the results, as far as it is known without the model and the text."""
        return {
            "model": {
                "name": self.model.model,
                "revision": self.model.revision,
                "dtype": self.model.dtype,
            },
            "corpus": self.corpus.model_dump(mode="json", exclude={"path", "shard"}),
            "options": self.options.identity(),
        }


class Parts:
    """The folder of the parts of one launch."""

    def __init__(self, run: Path, shards: int) -> None:
        self.folder = run / PARTS
        self.shards = [Shard(i, shards) for i in range(1, shards + 1)]

    def run_of(self, shard: Shard) -> Path:
        """The run folder of a shard."""
        width = len(str(shard.total))
        return self.folder / f"{shard.number:0{width}d}-of-{shard.total}"

    def lock_of(self, shard: Shard) -> Path:
        """The file that says which worker has a shard."""
        return self.run_of(shard) / LOCK

    def tokens(self, shard: Shard) -> int:
        """Tokens of a shard that are committed."""
        run = self.run_of(shard)
        if not (run / MANIFEST).is_file():
            return 0
        return int(read_manifest(run).progress.get("tokens", 0))

    def is_done(self, shard: Shard) -> bool:
        """Is the run of this shard finished?"""
        run = self.run_of(shard)
        return (run / MANIFEST).is_file() and read_manifest(run).status == "complete"

    @classmethod
    def begun(cls, run: Path) -> Parts | None:
        """What an earlier launch left in this folder, or None when nothing of it was committed."""
        stored = _read(run)
        if stored is None:
            return None
        parts = cls(run, int(stored["shards"]))
        return parts if any(has_progress(parts.run_of(shard)) for shard in parts.shards) else None

    def write(self, job: Job) -> None:
        """Say what is launched here."""
        stored = {"shards": len(self.shards), "identity": job.identity()}
        write_bytes(self.folder / _LAUNCH, json.dumps(stored, indent=1).encode())

    def require(self, job: Job) -> None:
        """Refuse to go on with anything but what was begun.

        Raises:
            RunError: model, corpus or options differ; names the first difference.
        """
        stored = _read(self.folder.parent) or {}
        require_same(self.folder, stored.get("identity", {}), job.identity())

    @classmethod
    def remove(cls, run: Path) -> None:
        """Remove the parts that a launch left in a run, and last the file that tells what they are.

        What no launch has made is left alone.
        """
        stored = _read(run)
        if stored is None:
            return
        parts = cls(run, int(stored["shards"]))
        for path in sorted(parts.folder.iterdir()):  # an earlier launch may have cut otherwise
            if path.is_dir() and not path.is_symlink() and (path / LEDGER).is_file():
                remove_result(path)
        for name in sorted(owned(parts.folder), key=lambda name: name == _LAUNCH):
            remove(parts.folder / name)


def _read(run: Path) -> dict[str, Any] | None:
    path = run / PARTS / _LAUNCH
    if not path.is_file():
        return None
    try:
        stored = json.loads(path.read_text(encoding="utf-8"))
        if not 1 <= int(stored["shards"]) <= MOST_SHARDS:
            raise ValueError(f"{counted(stored['shards'], 'shard')}")
        return {"shards": int(stored["shards"]), "identity": dict(stored["identity"])}
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise RunError(f"{path} is damaged ({error}); launch into a new folder") from error
