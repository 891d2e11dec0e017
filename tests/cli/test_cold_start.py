"""A verb that needs no model imports no torch, and a typing error is answered before anything is.

Each command runs in a process of its own, and what it imported is looked at when it ends.
"""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from moescope.metrics.runs import AnalyzedRun

HEAVY = {"torch", "transformers", "tokenizers", "pandas"}
NUMBERS = {"numpy", "pyarrow"}

SCRIPT = """
import json, sys
sys.argv = ["moescope", *json.loads(sys.argv[1])]
from moescope.cli.main import run
try:
    run()
except SystemExit as stopped:
    seen = [n for n in {heavy!r} if n in sys.modules]
    print("SEEN", json.dumps([stopped.code, seen]), file=sys.stderr)
"""


def ran(*words: object, cwd: Path) -> tuple[int, set[str], str]:
    """Exit code, heavy modules that were imported, and what stood on stderr."""
    script = SCRIPT.format(heavy=sorted(HEAVY | NUMBERS))
    given = json.dumps([str(word) for word in words])
    done = subprocess.run(
        [sys.executable, "-c", script, given], cwd=cwd, capture_output=True, text=True, check=False
    )
    said, _, seen = done.stderr.rpartition("SEEN ")
    code, modules = json.loads(seen)
    return code, set(modules), said


def test_help_imports_neither_numbers_nor_models(tmp_path: Path) -> None:
    code, seen, _ = ran("--help", cwd=tmp_path)
    assert (code, seen - NUMBERS) == (0, set())
    for verb in ("steer", "trace", "report"):
        code, seen, _ = ran(verb, "--help", cwd=tmp_path)
        assert (code, seen) == (0, set())


@pytest.mark.parametrize(
    "words",
    [("table", "RUN"), ("table", "RUN", "load"), ("report", "RUN", "-o", "page.html"),
     ("compare", "RUN", "RUN"), ("merge", "RUN", "-o", "joined")],
    ids=lambda words: " ".join(words[:1] + words[2:]),
)  # fmt: skip
def test_what_reads_runs_imports_no_model(
    words: tuple[str, ...], tiny_run: AnalyzedRun, tmp_path: Path
) -> None:
    given = [tiny_run.path if word == "RUN" else word for word in words]
    code, seen, said = ran(*given, cwd=tmp_path)
    assert code == 0, said
    assert seen - NUMBERS - {"pandas"} == set()


WRONG = {
    "a word for a number": ("trace", "M", "T", "-o", "r", "--seed", "one"),
    "no such name": ("analyze", "M", "T", "-o", "r", "--keep", "some"),
    "no such text": ("trace", "M", "nothing", "-o", "r"),
    "no such layers": ("similarity", "M", "-o", "r", "--layers", "3-1"),
    "no such method": ("similarity", "M", "-o", "r", "--method", "feeling"),
    "a setting of no form": ("steer", "M", "--prompt", "a", "--set", "L1E3"),
    "an open strength": ("steer", "M", "--prompt", "a", "--set", "L1E3=+s"),
    "strengths of no form": (
        "steer", "M", "--prompt", "a", "--set", "L1E3=+s", "--sweep", "a:b"),
    "a value without a plan": (
        "steer", "M", "--prompt", "a", "--set", "L1E3=+2", "--as", "mask"),
    "no such plan": ("steer", "M", "--prompt", "a", "--plan", "none.json"),
    "no such plan of experts": ("ablate", "M", "--run", "r", "--plan", "none.json"),
    "no such edit": ("ablate", "M", "--run", "r", "--each", "--edit", "boil"),
    "no strength": ("contrast", "M", "--with", "a", "--without", "b", "--strength", "0"),
    "no pairs": ("contrast", "M", "--with", "a", "--without", "b", "--span", "shared"),
    "no such recipe": ("train", "none.yaml", "-o", "r"),
    "two limits": ("capacity", "M", "a text", "--capacity", "3", "--factor", "2"),
    "one text": ("paths", "M", "a text"),
    "no limit": ("demo", "--limit", "0"),
    "no model": ("import", "vllm", "a.jsonl", "-o", "r"),
    "no run": ("profile", "none", "--all"),
    "no such format": ("inspect", "M", "--format", "tsv"),
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG)
def test_a_typing_error_is_answered_before_a_model_could_be(name: str, tmp_path: Path) -> None:
    code, seen, said = ran(*WRONG[name], cwd=tmp_path)
    assert code == 2, said
    assert seen - NUMBERS == set()
    assert not list(tmp_path.iterdir())
