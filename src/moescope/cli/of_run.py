"""A run in the place of a model: settings of the verbs that measure on the model of a run."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from pydantic import model_validator

from moescope.cli.settings import ModelArgs
from moescope.cli.verb import Flag
from moescope.files import usable_path
from moescope.progress import OnProgress, quiet

if TYPE_CHECKING:
    from moescope.models import LoadedModel
    from moescope.models.outline import Check


class OfRunArgs(ModelArgs):
    """A model, or a run that names it and keeps what is found."""

    kept_as: ClassVar[str]

    run: str | None = None
    """run that names the model; results go into it"""
    out: Annotated[str | None, Flag("-o")] = None
    """folder to write; by default one in RUN, with --run"""

    @model_validator(mode="before")
    @classmethod
    def _model_of_run(cls, given: Any) -> Any:
        if given.get("run") is None or given.get("model"):
            return given
        from moescope.run.manifest import read_manifest

        known = read_manifest(Path(str(given["run"]))).model
        revision = given.get("revision") or known.get("revision")
        return {**given, "model": known["name"], "revision": revision}

    def load(self, check: Check | None = None, on_progress: OnProgress = quiet) -> LoadedModel:
        """The model in memory, which is that of the run."""
        loaded = super().load(check, on_progress)
        if self.run is not None:
            from moescope.measure.windows import require_model
            from moescope.metrics.runs import open_run

            require_model(loaded, open_run(self.run))
        return loaded

    def folder(self) -> Path | None:
        """Where to write; None for nowhere."""
        if self.out is not None:
            return usable_path(self.out)
        return None if self.run is None else Path(self.run) / self.kept_as
