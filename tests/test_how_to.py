"""The how-tos for adding things, walked as they are written."""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from textwrap import dedent
from typing import Any, NamedTuple

import pytest
from tests.support.packages import install_project
from transformers import AutoModelForCausalLM, AutoTokenizer

import moescope
from moescope.cli.main import app
from moescope.cli.terminal import output
from moescope.demo import MODEL
from moescope.errors import ModelError
from moescope.metrics.runs import AnalyzedRun, open_run
from moescope.models import capture, wrap_model
from moescope.trace.routes import route

ROOT = Path(__file__).resolve().parent.parent
SOURCE = Path(moescope.__file__).parent
PAGES = ROOT / "docs" / "how-to"
_FENCE = re.compile(r"^[ ]*```(\w+) ?(.*?)\n(.*?)^[ ]*```$", re.DOTALL | re.MULTILINE)


class Block(NamedTuple):
    """A fenced block of a page: its language, what stands behind it, and its text."""

    language: str
    about: str
    text: str


def blocks_of(page: str) -> list[Block]:
    text = (PAGES / page).read_text(encoding="utf-8")
    return [Block(lang, about, dedent(body)) for lang, about, body in _FENCE.findall(text)]


def write_files(blocks: list[Block], folder: Path) -> None:
    """Write every block that names a file."""
    for block in blocks:
        if block.about.startswith("title="):
            (folder / block.about.removeprefix("title=")).write_text(block.text, encoding="utf-8")


def commands_of(blocks: list[Block]) -> Iterator[tuple[list[str], str]]:
    """The words of every command, and what the page says that it prints."""
    for block in blocks:
        if block.language == "console":
            for part in re.split(r"^\$ ", block.text, flags=re.MULTILINE)[1:]:
                command, _, says = part.partition("\n")
                yield shlex.split(command), says.strip()


@pytest.mark.parametrize(
    "page", ["add-a-table.md", "add-an-edit.md", "add-an-architecture.md"], ids=str
)
def test_a_how_to_is_at_most_a_page(page: str) -> None:
    assert len((PAGES / page).read_text(encoding="utf-8").splitlines()) <= 100


class TestAddATable:
    def test_the_steps_give_the_table(
        self,
        tiny_run: AnalyzedRun,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
        capsys: pytest.CaptureFixture[str],
    ) -> None:
        blocks = blocks_of("add-a-table.md")
        shutil.copytree(tiny_run.path, tmp_path / "my-run")
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr(output, "_width", 200)
        monkeypatch.syspath_prepend(str(tmp_path))
        write_files(blocks, tmp_path)
        printed = []
        for words, _ in commands_of(blocks):
            if words == ["pip", "install", "-e", "."]:
                install_project(tmp_path)
                continue
            assert words[0] == "moescope"
            app([*words[1:]], standalone_mode=False)
            printed.append(" ".join(capsys.readouterr().out.split()))
        listed, shown, about = printed
        assert "How much of a layer's work its busiest expert does" in listed
        assert "busiest" in shown
        assert "share: the largest load of the layer; chance: 1/E" in about
        made = open_run(tmp_path / "my-run").table("top_share").to_pandas()
        load = tiny_run.table("load").to_pandas()
        keys = ["phase", "layer", "domain"]
        expected = load.groupby(keys).load.max()
        found = made.set_index(keys).share
        assert found.loc[expected.index].tolist() == pytest.approx(expected.tolist())
        sys.modules.pop("my_tables")


class TestAddAnEdit:
    def test_the_steps_give_the_edit(self, tiny_folder: Path, tmp_path: Path) -> None:
        blocks = blocks_of("add-an-edit.md")
        large = shutil.ignore_patterns("*.safetensors", "*.jsonl", "__pycache__")
        shutil.copytree(SOURCE, tmp_path / "src" / "moescope", ignore=large)
        write_files(blocks, tmp_path)
        kinds = tmp_path / "src" / "moescope" / "models" / "edits" / "kinds.py"
        for block in blocks:
            if block.about == "replace":
                old, new = block.text.split("---\n")
                text = kinds.read_text(encoding="utf-8")
                assert text.count(old) == 1
                kinds.write_text(text.replace(old, new), encoding="utf-8")
        commands = [
            ([str(tiny_folder) if word == "MODEL" else word for word in words], says)
            for words, says in commands_of(blocks)
        ]
        (tmp_path / "walk.py").write_text(WALK)
        words = json.dumps([words for words, _ in commands])
        env = {**os.environ, "PYTHONPATH": str(tmp_path / "src"), "COLUMNS": "1000"}
        done = subprocess.run(
            [sys.executable, "walk.py", words, str(tiny_folder)],
            cwd=tmp_path, env=env, capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        codes, limited = json.loads(done.stdout.splitlines()[-1])
        assert codes == [2 if says else 0 for _, says in commands]
        said = " ".join(done.stderr.split())
        parts = [part.strip() for _, says in commands for part in says.split("…")]
        assert [part for part in parts if part not in said] == []
        assert limited


WALK = """
import json, sys

import torch

from moescope.cli.main import run
from moescope.models import ModelSpec, load_model
from moescope.models.capture import RoutingCapture
from moescope.models.editing import edited
from moescope.models.edits.cap import cap

codes = []
_, words, folder = sys.argv
for sys.argv in json.loads(words):
    try:
        run()
    except SystemExit as stopped:
        codes.append(stopped.code or 0)
loaded = load_model(ModelSpec(folder))
sites = [layer.site for layer in loaded.anatomy.layers]
with edited(loaded, cap(["L1E0", "L1E1"], 0.01)), RoutingCapture(loaded.model, sites) as seen:
    loaded.model(torch.arange(3, 60)[None])
    made = seen.take()[1]
named, weights = made.topk_ids < 2, made.topk_weights
limited = bool(named.any() and (weights[named] <= 0.01).all() and (weights > 0.01).any())
print(json.dumps([codes, limited]))
"""


class TestAddAnArchitecture:
    def test_a_router_that_is_refused_is_read_with_the_reader_of_the_page(
        self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        tried, reader = [b.text for b in blocks_of("add-an-architecture.md") if b.about]
        with pytest.raises(ModelError, match="it answers with"):
            exec(tried, {})
        monkeypatch.setattr(capture, "_READERS", dict(capture._READERS))
        exec(reader, vars(capture) | {"_READERS": capture._READERS})
        names: dict[str, Any] = {}
        exec(tried, names)
        page = (PAGES / "add-an-architecture.md").read_text(encoding="utf-8")
        assert capsys.readouterr().out.strip() in page
        stock = AutoModelForCausalLM.from_pretrained(MODEL)
        plain = route(
            wrap_model(stock, AutoTokenizer.from_pretrained(MODEL)), "The plan covers therapy"
        )
        for layer, facts in plain.layers.items():
            assert (names["routes"][layer].topk_ids == facts.topk_ids).all()

    def test_the_places_that_it_names_are_there(self) -> None:
        text = (PAGES / "add-an-architecture.md").read_text(encoding="utf-8")
        places = re.findall(r"`(\w+)` (?:in|of) `((?:\w+/)+\w+\.py)`", text)
        assert len(places) >= 8
        for name, file in places:
            path = (ROOT if file.startswith("tests/") else SOURCE) / file
            assert re.search(rf"^(def |class )?{name}\b", path.read_text(), re.MULTILINE), file
        says = re.findall(r'^\| "(.+?)" \|', text, re.MULTILINE)
        code = " ".join(p.read_text(encoding="utf-8") for p in (SOURCE / "models").rglob("*.py"))
        plain = re.sub(r'"\s*f?"', "", code)
        assert [words for words in says if words not in plain] == []

    def test_its_command_runs(self, tiny_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
        words: Any = next(commands_of(blocks_of("add-an-architecture.md")))[0]
        app([str(tiny_folder) if w == "MODEL" else w for w in words[1:]], standalone_mode=False)
        assert "olmoe" in capsys.readouterr().out
