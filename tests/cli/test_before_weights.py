"""What a verb can be refused for is refused before a byte of the weights is read."""

import sys
from pathlib import Path

import pytest
from tests.cli.bad.place import changed_json, filled, make_place

from moescope.cli import main
from moescope.models import loading

VERBS = {
    "analyze": "analyze MOE TEXTS -o r",
    "trace": "trace MOE TEXTS -o r",
    "trace streamed": "trace MOE TEXTS -o r --engine streamed",
    "ablate": "ablate MOE --corpus TEXTS --experts L1E3 -o r",
    "ablate each": "ablate MOE --corpus TEXTS --each -o r",
    "similarity": "similarity MOE TEXTS -o r",
    "contrast": "contrast MOE --with TEXTS --without OTHERTEXTS -o r",
    "steer": "steer MOE --prompt plan --set L1E3=+2 -o r",
    "profile": "profile OTHERRUN L0E1",
    "capacity": "capacity MOE plan",
    "paths": "paths MOE a b",
}
"""A command line of each verb that loads a model."""

WRITING = [name for name, words in VERBS.items() if " -o r" in words]
READING = ("analyze", "trace", "trace streamed", "ablate", "ablate each", "similarity", "contrast")
WITH_LAYERS = ("analyze", "trace", "trace streamed", "ablate each", "similarity", "contrast")

ABLATE = "ablate MOE --corpus TEXTS -o r"
CASES = {
    **{f"{v}: another's folder": (f"{VERBS[v]} -o foreign", "did not write") for v in WRITING},
    **{f"{v}: a file": (f"{VERBS[v]} -o foreign/mine.txt", "is a file") for v in WRITING},
    **{f"{v}: no such model": (f"{VERBS[v]} --dtype int4", "dtype") for v in VERBS},
    **{f"{v}: no such text": (VERBS[v].replace("TEXTS", "nowhere"), "nowhere") for v in READING},
    **{f"{v}: text of another field": (f"{VERBS[v]} --text-field body", "--text-field")
       for v in READING},
    **{f"{v}: no layers": (f"{VERBS[v]} --layers 3-1", "--layers") for v in WITH_LAYERS},
    **{f"{v}: other layers": (f"{VERBS[v]} --layers 9", "0-3") for v in WITH_LAYERS},
    **{f"{v}: no settings": (f"{VERBS[v]} --config none.yaml", "none.yaml") for v in VERBS},
    "analyze: a run is there": ("analyze MOE TEXTS -o done", "already holds a run"),
    "trace: a run is there": ("trace MOE TEXTS -o done", "already holds a run"),
    "ablate: a result is there": (f"{VERBS['ablate']} -o result", "already holds a result"),
    "similarity: pieces are there": (f"{VERBS['similarity']} -o pieces", "already holds a meas"),
    "contrast: pieces are there": (f"{VERBS['contrast']} -o contrast", "already holds a meas"),
    "steer: a result is there": (f"{VERBS['steer']} -o steering", "already holds a result"),
    "ablate: no such expert": (f"{ABLATE} --experts L1E8", "L1E8 does not exist"),
    "ablate: no such layer": (f"{ABLATE} --experts L9E0", "L9E0 does not exist"),
    "ablate: no other expert": (f"{ABLATE} --experts L1E*", "--controls 0"),
    "ablate: no plan": (f"{ABLATE} --plan none.json", "none.json"),
    "ablate: a plan of another model": (f"{ABLATE} --plan other.json", "the plan was made for"),
    "steer: no such expert": ("steer MOE --prompt a --set L1E8=+2", "L1E8 does not exist"),
    "steer: no plan": ("steer MOE --prompt a --plan none.json", "none.json"),
    "steer: a plan of another model": (
        "steer MOE --prompt a --plan other.json --as +2", "the plan was made for"),
    "profile: no such expert": ("profile OTHERRUN L1E8", "L1E8"),
    "capacity: no such layer": ("capacity MOE plan --layer 9", "0-3"),
}  # fmt: skip


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_place(tmp_path_factory.mktemp("place"))


def _fill(here: Path, place: Path) -> None:
    """A folder of somebody else, a plan of another model, and results of ours."""
    (here / "foreign").mkdir()
    (here / "foreign" / "mine.txt").write_text("mine")
    (here / "done").symlink_to(place / "run")
    plan = changed_json(place / "plan.json")
    (here / "other.json").write_text(plan.replace('"config_sha256": "', '"config_sha256": "0'))
    from moescope.files import claim, write_bytes

    for name, kind, file in (
        ("result", "ablation", "result.json"), ("pieces", "similarity", "measured.jsonl"),
        ("contrast", "contrast", "measured.jsonl"), ("steering", "steering", "result.json"),
    ):  # fmt: skip
        with claim(here / name, kind) as folder:
            write_bytes(folder / file, b"{}")


@pytest.mark.parametrize("name", CASES)
def test_it_is_refused_before_weights_are_read(
    name: str,
    place: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def touched(*_: object, **__: object) -> None:
        raise AssertionError("weights were touched")

    monkeypatch.setattr(loading, "checkpoint_folder", touched)
    _fill(tmp_path, place)
    before = sorted(tmp_path.iterdir())
    words, says = CASES[name]
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["moescope", *(filled(w, place) for w in words.split())])
    with pytest.raises(SystemExit) as stopped:
        main.run()
    err = capsys.readouterr().err
    assert (stopped.value.code, len(err.splitlines())) == (2, 1), err
    assert says in err
    assert sorted(tmp_path.iterdir()) == before


@pytest.mark.parametrize("name", VERBS)
def test_what_is_right_gets_as_far_as_the_weights(
    name: str,
    place: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def touched(*_: object, **__: object) -> None:
        raise AssertionError("weights were touched")

    monkeypatch.setattr(loading, "checkpoint_folder", touched)
    monkeypatch.chdir(tmp_path)
    words = VERBS[name].split()
    monkeypatch.setattr(sys, "argv", ["moescope", *(filled(w, place) for w in words)])
    with pytest.raises(SystemExit):
        main.run()
    assert "weights were touched" in capsys.readouterr().err
