"""The steps of docs/how-to/add-a-verb.md, followed to the letter in a copy of the package."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

from tests.cli.bad import Case

import moescope
from moescope.metrics.runs import AnalyzedRun

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "how-to" / "add-a-verb.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", PAGE, re.DOTALL | re.MULTILINE)


def copied(folder: Path) -> Path:
    """A package like moescope, of which only the command line is a copy."""
    package = folder / "moescope"
    package.mkdir()
    source = Path(moescope.__file__).parent
    for entry in source.iterdir():
        if entry.name not in ("cli", "__pycache__"):
            (package / entry.name).symlink_to(entry)
    shutil.copytree(source / "cli", package / "cli")
    return package


def test_the_page_is_short() -> None:
    assert len(PAGE.splitlines()) <= 100


def test_its_steps_make_a_verb(tmp_path: Path, tiny_run: AnalyzedRun) -> None:
    package = copied(tmp_path)
    body, cases = blocks("python")
    file = re.search(r"^`src/moescope/(.*)`:$", PAGE, re.MULTILINE)
    assert file is not None
    (package / file[1]).write_text(body, encoding="utf-8")
    [word] = re.findall(r"^Add `(.*)` to `SECTIONS`", PAGE, re.MULTILINE)
    help_ = package / "cli" / "help.py"
    text = help_.read_text(encoding="utf-8")
    help_.write_text(text.replace('"demo",', f'"demo", {word},', 1), encoding="utf-8")
    where = {**os.environ, "PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}"}

    def ran(*words: str) -> subprocess.CompletedProcess[str]:
        given = [str(tiny_run.path) if w in ("my-run", "RUN") else w for w in words]
        return subprocess.run(
            [sys.executable, "-m", "moescope", *given],
            env=where, cwd=tmp_path, capture_output=True, text=True, check=False,
        )  # fmt: skip

    [command] = re.findall(r"^\$ moescope (.*)$", "".join(blocks("console")), re.MULTILINE)
    done = ran(*command.split(), "--format", "csv")
    assert done.returncode == 0, done.stderr
    header, *rows = done.stdout.splitlines()
    assert header == "doc,domain,tokens"
    lengths = [int(row.split(",")[2]) for row in rows]
    assert len(lengths) == 3
    assert lengths == sorted(lengths, reverse=True)
    made: dict[str, list[Case]] = {}
    exec(cases, made)
    assert len(made["CASES"]) >= 3
    for one in made["CASES"]:
        refused = ran(*one.words)
        assert refused.returncode == one.code
        assert len(refused.stderr.splitlines()) == 1
        assert all(fragment in refused.stderr for fragment in one.says)
    (tmp_path / "c.yaml").write_text(f"{{run: {tiny_run.path}, rows: 2, format: json}}")
    assert len(ran("documents", "--config", "c.yaml").stdout.splitlines()) == 2
