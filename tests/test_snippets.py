"""What README, the tutorial and the how-tos show runs in an environment that README's lines make.

The environment has the wheel and what the wheel requires, and nothing of the tests. Pages that say
how to add something to moescope are walked in a copy of the package, by tests of their own.
"""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from tests.support import snippets
from tests.support.installed import run

ROOT = Path(__file__).resolve().parent.parent
WALKED = {
    "add-a-table.md": "tests/test_how_to.py",
    "add-a-verb.md": "tests/cli/test_add_a_verb.py",
    "add-an-architecture.md": "tests/test_how_to.py",
    "add-an-edit.md": "tests/test_how_to.py",
}
PAGES = [
    ROOT / "docs" / "tutorial.md",
    *(p for p in sorted((ROOT / "docs" / "how-to").glob("*.md")) if p.name not in WALKED),
]
FAST = ("tutorial", "notebook", "own-corpus", "select-experts", "steer")
"""Pages that the fast tests run too, besides README; the rest take minutes together."""

SHOWN = {p: [b for b in snippets.blocks_of(p) if b.language in ("python", "console")]
         for p in [ROOT / "README.md", *PAGES]}  # fmt: skip


@pytest.fixture(scope="session")
def place(installed: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with what pages take for granted."""
    folder = tmp_path_factory.mktemp("pages") / "given"
    folder.mkdir()
    done = run(installed / "python", snippets.__file__, folder, cwd=folder)
    assert done.returncode == 0, done.stderr
    return folder


@pytest.mark.parametrize(
    ("page", "language"),
    [
        (ROOT / "README.md", "console"),
        (ROOT / "README.md", "python"),
        *(
            pytest.param(page, "", marks=() if page.stem in FAST else pytest.mark.slow)
            for page in PAGES
            if any(block.why is None for block in SHOWN[page])
        ),
    ],
    ids=lambda given: getattr(given, "stem", given),
)
def test_what_a_page_shows_runs_where_only_moescope_is_installed(
    page: Path, language: str, installed: Path, place: Path, tmp_path: Path
) -> None:
    here = tmp_path / "here"
    shutil.copytree(place, here, symlinks=True)
    languages = [language] if language else []
    done = run(installed / "python", snippets.__file__, here, page, *languages, cwd=here)
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr[-3000:]}"
    wanted = [b for b in SHOWN[page] if b.why is None and language in ("", b.language)]
    assert done.stdout.splitlines()[-1] == f"{len(wanted)} blocks ran"


def test_every_block_that_is_not_run_says_why() -> None:
    """Every block is run, or says why not; a mark that belongs to none would say nothing."""
    for page, blocks in SHOWN.items():
        text = page.read_text(encoding="utf-8")
        assert text.count("<!-- not run") == len([b for b in blocks if b.why]), page
        assert len(re.findall(r"^ *```(?:python|console)", text, re.MULTILINE)) == len(blocks)


def test_a_page_that_is_walked_elsewhere_is_named_there() -> None:
    for page, where in WALKED.items():
        files = [ROOT / where] if where.endswith(".py") else (ROOT / where).glob("*.py")
        assert any(page in file.read_text(encoding="utf-8") for file in files), page


@pytest.mark.slow
def test_what_readme_shows_runs_in_an_environment_that_its_own_lines_make(tmp_path: Path) -> None:
    """With the network, from nothing, with the versions that the project pins."""
    clone, here = tmp_path / "clone", tmp_path / "here"
    listed = ["git", "ls-files", "-z", "--", "src", "pyproject.toml", "README.md", "LICENSE"]
    names = subprocess.run(listed, cwd=ROOT, capture_output=True, check=True, text=True).stdout
    for name in filter(None, names.split("\0")):
        (clone / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, clone / name)
    subprocess.run([sys.executable, "-m", "venv", tmp_path / "venv"], check=True)
    bin_ = tmp_path / "venv" / "bin"
    commands = [c for b in SHOWN[ROOT / "README.md"] for c in snippets.commands_of(b)]
    installs = [line for line in commands if line.startswith("pip install")]
    assert installs == ["pip install -e ."]
    for line in installs:
        words = [bin_ / "python", "-m", *line.split(), "-q", "-c", ROOT / "constraints.txt"]
        subprocess.run(words, cwd=clone, check=True)
    here.mkdir()
    for words in ([], [ROOT / "README.md", "console"], [ROOT / "README.md", "python"]):
        shutil.rmtree(here / "my-run", ignore_errors=True)
        done = run(bin_ / "python", snippets.__file__, here, *words, cwd=here)
        assert done.returncode == 0, done.stderr
