"""What `pip install moescope` gives works alone: the wheel, and only what the wheel asks for."""

import re
import subprocess
import sys
import tarfile
import tomllib
import venv
import zipfile
from collections.abc import Sequence
from contextlib import chdir
from importlib.metadata import distribution
from pathlib import Path

import pytest
from hatchling.build import build_sdist, build_wheel
from packaging.requirements import Requirement

ROOT = Path(__file__).resolve().parent.parent
LEFT_OUT = "moescope/demo/checkpoints/"
MIB = 2**20


@pytest.fixture(scope="module")
def sdist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sdist")
    with chdir(ROOT):
        return folder / build_sdist(str(folder))


@pytest.fixture(scope="module")
def wheel(sdist: Path) -> Path:
    """Made of the source distribution, as pip does it, so that one must be whole too."""
    with tarfile.open(sdist) as archive:
        archive.extractall(sdist.parent, filter="data")
    with chdir(sdist.parent / sdist.name.removesuffix(".tar.gz")):
        return sdist.parent / build_wheel(str(sdist.parent))


def needed(requirements: Sequence[str], found: set[str], extras: frozenset[str]) -> set[str]:
    """The names of all distributions that these requirements lead to, added to `found`."""
    for requirement in map(Requirement, requirements):
        marker = requirement.marker
        wanted = marker is None or any(marker.evaluate({"extra": e}) for e in {"", *extras})
        if wanted and requirement.name not in found:
            found.add(requirement.name)
            asked = distribution(requirement.name).requires or []
            needed(asked, found, frozenset(requirement.extras))
    return found


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An environment that is empty except for the wheel and what it requires, linked in."""
    folder = tmp_path_factory.mktemp("empty") / "venv"
    venv.create(folder, symlinks=True)
    pip = [sys.executable, "-m", "pip", "--python", folder / "bin" / "python"]
    done = run(*pip, "install", "--quiet", "--no-index", "--no-deps", wheel, cwd=folder)
    assert done.returncode == 0, done.stderr
    [site] = folder.glob("lib/python*/site-packages")
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    for name in needed(project["dependencies"], set(), frozenset()):
        there = distribution(name)
        for part in {file.parts[0] for file in there.files or []} - {"..", "__pycache__"}:
            if not (site / part).exists():
                (site / part).symlink_to(str(there.locate_file(part)))
    checked = run(*pip, "check", cwd=folder)
    assert checked.returncode == 0, checked.stdout
    return folder / "bin"


def run(*command: str | Path, cwd: Path) -> subprocess.CompletedProcess[str]:
    """Run a program to which nothing of this checkout is handed down."""
    env = {"PATH": "/usr/bin:/bin", "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    words = [str(word) for word in command]
    return subprocess.run(words, cwd=cwd, env=env, text=True, capture_output=True, check=False)


def test_the_wheel_holds_every_tracked_file_of_the_package_but_the_early_steps(
    wheel: Path,
) -> None:
    listed = subprocess.run(
        ["git", "ls-files", "moescope"], cwd=ROOT / "src", text=True, capture_output=True
    )
    if listed.returncode:
        pytest.skip("not a clone")
    tracked = {name for name in listed.stdout.splitlines() if (ROOT / "src" / name).exists()}
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    early = {name for name in tracked if name.startswith(LEFT_OUT)}
    assert len(early) == 3
    assert tracked - names == early
    assert not any(name.startswith(LEFT_OUT) for name in names)
    assert {n.partition("/")[0].rpartition(".")[2] for n in names} == {"moescope", "dist-info"}


def test_wheel_and_source_are_small(wheel: Path, sdist: Path) -> None:
    assert wheel.stat().st_size < 25 * MIB
    assert sdist.stat().st_size < 25 * MIB


def test_the_source_holds_the_package_and_what_describes_it(sdist: Path) -> None:
    with tarfile.open(sdist) as archive:
        top = {Path(name).parts[1] for name in archive.getnames()}
    assert top == {
        ".gitignore", "CHANGELOG.md", "LICENSE", "PKG-INFO", "README.md", "pyproject.toml", "src",
    }  # fmt: skip


def test_the_demo_runs_from_the_wheel(installed: Path, tmp_path: Path) -> None:
    done = run(installed / "moescope", "demo", "-o", "demo-run", "--limit", "300", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1].endswith("demo-run/report.html")
    assert (tmp_path / "demo-run" / "report.html").stat().st_size > MIB // 4


def test_an_early_step_is_said_to_be_in_a_clone_and_nothing_is_written(
    installed: Path, tmp_path: Path
) -> None:
    done = run(installed / "moescope", "demo", "--step", "440", cwd=tmp_path)
    assert done.returncode == 2
    [line] = done.stderr.splitlines()
    assert "not part of the installed package" in line
    assert "a clone of the repository" in line
    assert list(tmp_path.iterdir()) == []


def test_the_python_of_the_readme_runs_from_the_wheel(installed: Path, tmp_path: Path) -> None:
    """Literally: the model it names is the shipped one, by a link of that name."""
    readme = (ROOT / "README.md").read_text("utf-8")
    code = "\n".join(re.findall(r"^```python\n(.*?)^```", readme, re.DOTALL | re.MULTILINE))
    asked = "import moescope; print(moescope.__file__)"
    here = run(installed / "python", "-c", asked, cwd=tmp_path)
    demo = Path(here.stdout.strip()).parent / "demo"
    assert demo.is_relative_to(installed.parent)
    for name in set(re.findall(r'"(\w+/[\w.-]+)"', code)):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).symlink_to(demo / "moe-10m")
    (tmp_path / "texts").mkdir()
    for path in list((demo / "samples").glob("*.jsonl"))[:3]:
        lines = path.read_text("utf-8").splitlines(keepends=True)
        (tmp_path / "texts" / path.name).write_text("".join(lines[:8]), "utf-8")
    (tmp_path / "readme.py").write_text(code, "utf-8")
    done = run(installed / "python", "readme.py", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "report.html" in done.stdout
