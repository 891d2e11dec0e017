"""A page of a run knows what was measured on the run and lies in its folder."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

from moescope.report.beside import measured_beside
from moescope.result import Result


def run_of(path: Path, **model: Any) -> Any:
    return SimpleNamespace(path=path, manifest=SimpleNamespace(model=model))


def keep(folder: Path, says: str, kind: str = "ablation", **identity: str) -> None:
    Result(kind, identity, {}, (says, "More.")).save(folder)


def test_the_verdict_of_every_ablation_of_the_same_model(tmp_path: Path) -> None:
    mine = {"config_sha256": "c", "weights_sha256": "w"}
    keep(tmp_path / "layer-3", "Lift does not predict importance.", **mine)
    keep(tmp_path / "ablation", "They matter no more than others.", **mine)
    keep(tmp_path / "other", "Of another model.", **mine | {"weights_sha256": "x"})
    keep(tmp_path / "similarity", "Alike.", kind="similarity", **mine)
    found = (
        ("ablation", "They matter no more than others."),
        ("layer-3", "Lift does not predict importance."),
    )
    assert measured_beside(run_of(tmp_path, **mine)) == found
    assert measured_beside(run_of(tmp_path, **mine | {"weights_sha256": None}))[:2] == found
    assert measured_beside(run_of(tmp_path)) == ()
