"""Every verb takes its settings from a file, and keeps those it ran with beside what it wrote."""

import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import typer
import yaml
from pydantic import BaseModel, Field
from tests.cli.bad.place import make_place

from moescope.cli import main
from moescope.cli.verb import Settings, of

COMMANDS = typer.main.get_command(main.app).commands  # type: ignore[attr-defined]

Call = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_place(tmp_path_factory.mktemp("place"))


@pytest.fixture
def moescope(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], place: Path
) -> Call:
    """Run a command line in this process, in the place."""

    def call(*words: object) -> tuple[int, str, str]:
        monkeypatch.chdir(place)
        monkeypatch.setattr(sys, "argv", ["moescope", *map(str, words)])
        with pytest.raises(SystemExit) as stopped:
            main.run()
        out, err = capfd.readouterr()
        return int(str(stopped.value.code)), out, err

    return call


@pytest.mark.parametrize("verb", COMMANDS)
def test_every_verb_takes_a_file_and_refuses_what_it_does_not_know(
    verb: str, moescope: Call, tmp_path: Path
) -> None:
    file = tmp_path / "c.yaml"
    first = next(p.name for p in COMMANDS[verb].params if p.name not in ("config", "resume"))
    file.write_text(f"{first}x: 3")
    code, _, err = moescope(verb, "--config", file)
    assert code == 2
    assert f"c.yaml: unknown setting '{first}x'" in err
    assert len(err.splitlines()) == 1
    file.write_text(f"{first}: {{a: [1]}}")
    code, _, err = moescope(verb, "--config", file)
    assert code == 2
    assert err.startswith("error: ")
    assert first in err
    assert len(err.splitlines()) == 1


PRINTING = {
    "inspect": "model: moe",
    "table": "{run: run, name: load, layer: 1, rows: 3, format: csv}",
    "compare": "{run_a: run, run_b: run, format: csv}",
    "paths": "{model: moe, left: the plan, right: a plan, format: json}",
    "capacity": "{model: moe, text: the plan, capacity: 1, format: json}",
    "profile": "{run: run, experts: [L0E1], no_model: true, pipeline: none, format: json}",
    "contrast": "{model: moe, with: texts.jsonl, without: other.jsonl, format: csv}",
}


@pytest.mark.parametrize("verb", PRINTING)
def test_a_file_alone_is_a_command(verb: str, moescope: Call, tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text(PRINTING[verb])
    code, out, err = moescope(verb, "--config", tmp_path / "c.yaml")
    assert code == 0, err
    assert out


WRITING = {
    "trace": "trace moe texts.jsonl --context 40 --layers 1,2 --keep all",
    "analyze": "analyze moe texts.jsonl --context 40 --limit 100",
    "merge": "merge run",
    "import": "import vllm captured.jsonl --model moe --domain d",
    "demo": "demo --limit 40",
    "train": "train recipe.yaml --set train.steps=2",
    "ablate": "ablate moe --corpus texts.jsonl --experts L1E3 --controls 2 --target domain1",
    "similarity": "similarity moe texts.jsonl --layers 1 --method router --method weights "
    "--map none",
    "steer": "steer moe --prompt plan --set L1E3=+2 --controls 2 --generate 2 --format json",
    "profile": "profile run L0E1 --no-model --pipeline none",
    "report": "report run",
}
"""A command for every verb that writes a folder; only the folder is missing."""


@pytest.fixture(scope="module")
def captured(place: Path) -> None:
    rows = [[[(t + n + k) % 8 for k in range(3)] for n in range(4)] for t in range(5)]
    record = {"prompt_token_ids": [5, 6, 7, 8], "output_token_ids": [9, 10]}
    text = json.dumps({**record, "routed_experts": rows})
    (place / "captured.jsonl").write_text(text + "\n")


@pytest.mark.parametrize("verb", WRITING)
@pytest.mark.usefixtures("captured")
def test_what_is_kept_beside_the_output_makes_it_again(
    verb: str, moescope: Call, place: Path, tmp_path: Path
) -> None:
    flag, key = ("--figures", "figures") if verb == "report" else ("-o", "out")
    first, again = tmp_path / "first", tmp_path / "again"
    place_of = [] if verb == "profile" else [flag, first]
    code, out, err = moescope(*WRITING[verb].split(), *place_of)
    assert code == 0, err
    kept = (place / "run" / "profiles" if verb == "profile" else first) / "config.yaml"
    settings = yaml.safe_load(kept.read_text())
    place_of = [] if verb == "profile" else [flag, again]
    code, out_again, err = moescope(verb, "--config", kept, *place_of)
    assert code == 0, err
    assert out_again.replace(str(again), str(first)) == out
    if verb != "profile":
        made = yaml.safe_load((again / "config.yaml").read_text())
        assert made == {**settings, key: str(again)}
        assert {p.name for p in again.iterdir()} == {p.name for p in first.iterdir()}


class Source(BaseModel):
    size: int = Field(3, ge=1, description="How large. In words.")


class Mine(Settings):
    size: int = of(Source, "size")
    with_: str = "a"
    """what is with it"""


def test_a_field_has_the_words_default_and_bounds_of_the_class_that_uses_it() -> None:
    field = Mine.model_fields["size"]
    assert field.description == "how large. In words"
    assert field.default == 3
    assert Mine.model_validate({"with": "b"}).with_ == "b"
    with pytest.raises(ValueError, match="greater than or equal to 1"):
        Mine(size=0)
