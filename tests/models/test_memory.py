"""What is free is what the process may take: of the machine, its control group, its accelerator."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from tests.support.saved import save_tiny

from moescope import memory
from moescope.errors import BadInputError, ModelError
from moescope.memory import available_memory, parse_memory
from moescope.models import ModelSpec, open_model
from moescope.models.loading import load_streamed
from moescope.models.memory import free_memory


@pytest.fixture
def groups(tmp_path: Path) -> Path:
    (tmp_path / "fs").mkdir()
    return tmp_path


def group(place: Path, **files: object) -> None:
    place.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (place / f"memory.{name}").write_text(f"{content}\n", encoding="utf-8")


def left(groups: Path, own: str) -> list[int]:
    (groups / "cgroup").write_text(own, encoding="utf-8")
    return memory._left_in_groups(groups / "cgroup", groups / "fs")


def test_a_group_leaves_its_limit_less_what_is_used_and_not_mere_cache(groups: Path) -> None:
    group(groups / "fs" / "job" / "step", max=1000, current=700, stat="anon 500\ninactive_file 150")
    group(groups / "fs" / "job", max=2000, current=1900, stat="inactive_file 0")
    group(groups / "fs", max="max", current=5)
    assert sorted(left(groups, "0::/job/step\n")) == [100, 450]  # 2000 − 1900; 1000 − 700 + 150


def test_the_older_control_groups_are_read_too(groups: Path) -> None:
    place = groups / "fs" / "memory" / "slurm"
    group(place, limit_in_bytes=500, usage_in_bytes=100, stat="total_inactive_file 20")
    assert left(groups, "9:cpu:/x\n4:memory:/slurm\n0::/\n") == [420]


def test_without_limits_the_machine_decides(groups: Path) -> None:
    assert left(groups, "0::/nowhere\n") == []
    assert memory._left_in_groups(groups / "none", groups / "fs") == []
    assert 0 < available_memory() <= memory.machine_memory()


def test_an_accelerator_is_asked_what_it_has_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _device: (1_000, 2_000))
    assert free_memory(torch.device("cuda:0")) == 1_000
    assert free_memory(torch.device("cpu")) > 1_000


def test_a_window_longer_than_the_batch_is_reckoned_with(tmp_path: Path) -> None:
    spec = ModelSpec(str(save_tiny("olmoe", tmp_path / "m", max_position_embeddings=8192)))
    needs = {}
    for window in (None, 512, 6000):
        loaded = open_model(spec, engine="streamed", memory="4GB", batch_tokens=512, window=window)
        assert loaded.streamed is not None
        assert loaded.streamed.need is not None
        needs[window] = loaded.streamed.need
    assert [n.batch_tokens for n in needs.values()] == [2048, 512, 6000]
    tight = needs[6000].total - needs[6000].batch // 2
    with pytest.raises(ModelError, match="for a batch of 6,000 tokens"):
        open_model(spec, engine="streamed", memory=str(tight), window=6000)


@pytest.mark.parametrize(
    ("text", "size"),
    [("4GB", 4e9), ("1.5g", 1.5e9), ("800 MB", 8e8), ("2GiB", 2**31), ("700", 700), ("5kib", 5120)],
)
def test_sizes_are_read(text: str, size: float) -> None:
    assert parse_memory(text) == size


@pytest.mark.parametrize("text", ["", "GB", "4i", "4iB", "1.2.3G", "-1GB", ".", "lots"])
def test_what_is_no_size_is_refused(text: str) -> None:
    with pytest.raises(BadInputError, match="is not a size; expected the form 4GB"):
        parse_memory(text)


def test_products_of_many_row_counts_leave_few_kernels_behind() -> None:
    """Torch keeps a thousand by default; on processors with bfloat16 each is most of a megabyte."""
    program = (
        "import torch\n"
        "from moescope.kernels import keep_few_kernels\n"
        "from moescope.memory import held_memory\n"
        "keep_few_kernels()\n"
        "weight = torch.ones(64, 64, dtype=torch.bfloat16)\n"
        "def products(sizes):\n"
        "    with torch.inference_mode():\n"
        "        for rows in sizes:\n"
        "            torch.nn.functional.linear(weight.new_ones(rows, 64), weight)\n"
        "products(range(1, 20))\n"
        "before = held_memory()\n"
        "products(range(20, 200))\n"
        "print(held_memory() - before)\n"
    )
    clean = {k: v for k, v in os.environ.items() if not k.endswith("CACHE_CAPACITY")}
    done = subprocess.run(
        [sys.executable, "-c", program], env=clean, check=True, capture_output=True, text=True
    )
    assert int(done.stdout) < 40e6


CACHES = ("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "LRU_CACHE_CAPACITY")


def test_importing_the_library_changes_no_variable_of_the_program() -> None:
    program = (
        "import os, torch, transformers\n"
        "before = dict(os.environ)\n"
        "import moescope.jobs, moescope.launch, moescope.intervene\n"
        "assert dict(os.environ) == before, set(os.environ) - set(before)\n"
    )
    clean = {k: v for k, v in os.environ.items() if k not in CACHES}
    subprocess.run([sys.executable, "-c", program], env=clean, check=True)


@pytest.mark.parametrize("chosen", [None, "100"])
def test_a_streamed_model_keeps_few_kernels_unless_the_user_chose(
    chosen: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for cache in CACHES:
        monkeypatch.setenv(cache, chosen or "")  # so that what is there now comes back
        if chosen is None:
            monkeypatch.delenv(cache)
    load_streamed(ModelSpec(str(save_tiny("olmoe", tmp_path / "m"))))
    assert [os.environ[cache] for cache in CACHES] == [chosen or "8"] * 2


def test_the_command_keeps_few_kernels() -> None:
    program = (
        "import os, sys\n"
        "sys.argv = ['moescope', '--version']\n"
        "from moescope.cli.main import run\n"
        "try:\n"
        "    run()\n"
        "except SystemExit:\n"
        "    print(os.environ.get('LRU_CACHE_CAPACITY'), 'torch' in sys.modules)\n"
    )
    clean = {k: v for k, v in os.environ.items() if k not in CACHES}
    done = subprocess.run(
        [sys.executable, "-c", program], env=clean, check=True, capture_output=True, text=True
    )
    assert done.stdout.split()[-2:] == ["8", "False"]
