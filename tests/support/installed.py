"""What `pip install moescope` gives: the wheel, and an environment with what it asks for alone."""

import subprocess
import sys
import tarfile
import tomllib
import venv
from collections.abc import Sequence
from contextlib import chdir
from importlib.metadata import distribution
from pathlib import Path

import pytest
from hatchling.build import build_sdist, build_wheel
from packaging.requirements import Requirement

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="session")
def sdist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sdist")
    with chdir(ROOT):
        return folder / build_sdist(str(folder))


@pytest.fixture(scope="session")
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


@pytest.fixture(scope="session")
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
