"""One flipped byte anywhere in a training run is noticed, or what it was in is made again."""

import shutil
from pathlib import Path

import pytest
from tests.training.conftest import RecipeWriter

from moescope.errors import RunError
from moescope.files import LEDGER
from moescope.training.log import TrainingLog
from moescope.training.recipe_file import load_recipe
from moescope.training.state import TrainingState
from moescope.training.trainer import train


class Stop(Exception):
    pass


def stop(state: TrainingState) -> None:
    if state.step == 2:
        raise Stop


@pytest.fixture(scope="module")
def begun(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A training of its own tokenizer that was interrupted, and its recipe."""
    folder = tmp_path_factory.mktemp("begun")
    changes = {"tokenizer": {"path": None, "vocab_size": 300}, "run": {"checkpoint_minutes": 1e-9}}
    recipe = RecipeWriter(folder)(train={"steps": 3}, **changes)
    with pytest.raises(Stop):
        train(load_recipe(recipe), folder / "run", listen=stop)
    return recipe, folder / "run"


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize(
    "name",
    [
        "checkpoint/weights.safetensors", "checkpoint/optimizer.safetensors",
        "checkpoint/buffers.safetensors", "checkpoint/arrays.safetensors",
        "checkpoint/state.json", "log/steps.parquet", "log/domains.parquet", "log/layers.parquet",
    ],
)  # fmt: skip
def test_an_altered_file_stops_the_resume(
    name: str, begun: tuple[Path, Path], tmp_path: Path
) -> None:
    recipe, run = begun
    shutil.copytree(run, tmp_path / "run")
    flip(tmp_path / "run" / name)
    with pytest.raises(RunError, match="was truncated or altered; restore it") as caught:
        train(load_recipe(recipe), tmp_path / "run", resume=True)
    assert name in str(caught.value)
    if name.startswith("log/"):
        with pytest.raises(RunError, match="altered"):
            TrainingLog.read(tmp_path / "run", Path(name).stem)


@pytest.mark.parametrize(
    "name", ["tokens/index.json", "tokens/train-000.bin", "tokenizer/tokenizer.json"]
)
def test_what_follows_from_the_text_is_made_again(
    name: str, begun: tuple[Path, Path], tmp_path: Path
) -> None:
    recipe, run = begun
    shutil.copytree(run, tmp_path / "run")
    good = (run / name).read_bytes()
    flip(tmp_path / "run" / name)
    train(load_recipe(recipe), tmp_path / "run", resume=True)
    assert (tmp_path / "run" / name).read_bytes() == good


def test_every_file_of_a_training_has_a_checksum(begun: tuple[Path, Path], tmp_path: Path) -> None:
    recipe, run = begun
    shutil.copytree(run, tmp_path / "run")
    train(load_recipe(recipe), tmp_path / "run", resume=True)
    there = {
        p.relative_to(tmp_path / "run").as_posix()
        for p in (tmp_path / "run").rglob("*")
        if p.is_file()
    }
    noted = {
        line.split("  ")[1]
        for line in (tmp_path / "run" / LEDGER).read_text().splitlines()
        if line[0] != "#"
    }
    assert there - noted == {LEDGER}
