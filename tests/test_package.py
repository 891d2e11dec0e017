"""What `pip install moescope` gives works alone: the wheel, and only what the wheel asks for."""

import subprocess
import tarfile
import zipfile
from pathlib import Path

import pytest
from tests.support.installed import run

ROOT = Path(__file__).resolve().parent.parent
LEFT_OUT = "moescope/demo/checkpoints/"
MIB = 2**20


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
