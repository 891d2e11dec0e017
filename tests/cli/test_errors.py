"""Bad input: one clear line on stderr, exit code 2, no traceback, and nothing written is lost."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest
from tests.support.saved import save_tiny, tiny_tokenizer, write_corpus
from transformers import AutoModelForCausalLM, LlamaConfig

from moescope.cli import main


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("cli")
    save_tiny("olmoe", folder / "moe")
    dense = LlamaConfig(
        vocab_size=128, hidden_size=32, intermediate_size=48, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2,
    )  # fmt: skip
    AutoModelForCausalLM.from_config(dense).save_pretrained(folder / "dense")
    tiny_tokenizer().save_pretrained(folder / "dense")
    write_corpus(folder / "texts.jsonl", documents_per_domain=3)
    (folder / "empty.jsonl").write_text("")
    (folder / "notjson.jsonl").write_text('{"text": "a b c", "domain": "d"}\n{broken\n')
    (folder / "nofield.jsonl").write_text('{"body": "a b c", "domain": "d"}\n')
    (folder / "nodomain.jsonl").write_text('{"text": "a b c"}\n')
    (folder / "fake.parquet").write_text("no parquet at all, whatever its name says")
    save_tiny("doge", folder / "doge", is_moe=True)
    (folder / "nothing").mkdir()
    return folder


class Done(NamedTuple):
    returncode: int
    stdout: str
    stderr: str


@pytest.fixture
def moescope(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., Done]:
    """The command in this process: what `moescope` does, without a start-up each time."""

    def call(*words: object, cwd: Path) -> Done:
        monkeypatch.chdir(cwd)
        monkeypatch.setenv("COLUMNS", "200")
        monkeypatch.setattr(sys, "argv", ["moescope", *map(str, words)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as stopped:
            main.run()
        out, err = capsys.readouterr()
        return Done(int(stopped.value.code or 0), out, err)

    return call


BAD = {
    "unknown local model": (("analyze", "./moo", "texts.jsonl", "-o", "r"), "no such folder"),
    "unknown hub model": (
        ("analyze", "owner/none", "texts.jsonl", "-o", "r"),
        "cannot be asked",
    ),
    "dense model": (("analyze", "dense", "texts.jsonl", "-o", "r"), "no Mixture-of-Experts layer"),
    "refused model": (("inspect", "doge"), "not supported: its block computes"),
    "not a model": (("inspect", "nothing"), "holds no config.json"),
    "missing corpus": (("analyze", "moe", "text.jsonl", "-o", "r"), "texts.jsonl"),
    "empty corpus": (("analyze", "moe", "empty.jsonl", "-o", "r"), "empty"),
    "broken line": (("analyze", "moe", "notjson.jsonl", "-o", "r"), "notjson.jsonl:2"),
    "missing field": (("analyze", "moe", "nofield.jsonl", "-o", "r"), "--text-field"),
    "missing domain": (("analyze", "moe", "nodomain.jsonl", "-o", "r"), "--domain"),
    "not what it says": (("analyze", "moe", "fake.parquet", "-o", "r"), "parquet"),
    "no output": (("analyze", "moe", "texts.jsonl"), "out is missing"),
    "no such layer": (
        ("analyze", "moe", "texts.jsonl", "-o", "r", "--layers", "77"),
        "MoE layers are 0-3",
    ),
    "bad layers": (("analyze", "moe", "texts.jsonl", "-o", "r", "--layers", "a-b"), "0,3,8-11"),
    "too long": (("analyze", "moe", "texts.jsonl", "-o", "r", "--context", "99999"), "context"),
    "bad device": (("analyze", "moe", "texts.jsonl", "-o", "r", "--device", "warp"), "warp"),
    "bad limit": (("analyze", "moe", "texts.jsonl", "-o", "r", "--limit", "0"), "limit"),
    "unknown flag": (("analyze", "moe", "texts.jsonl", "--colour", "red"), "--colour"),
    "unknown verb": (("analyse", "moe"), "analyse"),
    "no run": (("table", "nothing"), "is not a run"),
    "one text": (("paths", "moe", "the plan"), "TEXT"),
    "empty text": (("paths", "moe", "the plan", " "), "empty text"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_line_and_exit_code_2(
    moescope: Callable[..., Done], case: str, place: Path
) -> None:
    words, expected = BAD[case]
    done = moescope(*words, cwd=place)
    lines = [line for line in done.stderr.splitlines() if line.strip()]
    assert done.returncode == 2, done.stderr
    assert len(lines) == 1, done.stderr
    assert expected in lines[0]
    assert lines[0].startswith("error: ")
    assert "Traceback" not in done.stderr
    assert done.stdout == ""


def test_a_broken_line_is_left_out_only_when_asked_and_said_so(
    moescope: Callable[..., Done], place: Path, tmp_path: Path
) -> None:
    done = moescope(
        "trace", "moe", "notjson.jsonl", "-o", tmp_path / "r", "--on-error", "skip", cwd=place
    )
    assert done.returncode == 0, done.stderr
    assert "records left out: 1" in done.stderr
    manifest = json.loads((tmp_path / "r" / "manifest.json").read_text())
    assert sum(manifest["coverage"]["skipped_records"].values()) == 1


def test_unknown_keys_in_a_config_file_are_refused(
    moescope: Callable[..., Done], place: Path, tmp_path: Path
) -> None:
    (tmp_path / "c.yaml").write_text("model: moe\ncorpus: texts.jsonl\nout: r\nseeed: 3\n")
    done = moescope("trace", "--config", tmp_path / "c.yaml", cwd=place)
    assert done.returncode == 2
    assert "did you mean seed?" in done.stderr


def test_the_resolved_config_reproduces_the_run(
    moescope: Callable[..., Done], place: Path, tmp_path: Path
) -> None:
    first, second = tmp_path / "a", tmp_path / "b"
    base = ("trace", "moe", "texts.jsonl", "--context", "32", "--keep", "all")
    assert moescope(*base, "-o", first, cwd=place).returncode == 0
    again = moescope("trace", "--config", first / "config.yaml", "-o", second, cwd=place)
    assert again.returncode == 0, again.stderr
    for name in ("sample.parquet", "documents.parquet", "shards/00000.parquet"):
        assert (first / name).read_bytes() == (second / name).read_bytes()
    done = moescope(*base, "-o", first, cwd=place)
    assert done.returncode == 2
    assert "already holds a run" in done.stderr


def test_tables_print_in_every_format_and_name_what_exists(
    moescope: Callable[..., Done], place: Path, tmp_path: Path
) -> None:
    run = tmp_path / "r"
    assert moescope("trace", "moe", "texts.jsonl", "-o", run, cwd=place).returncode == 0
    listed = moescope("table", run, cwd=place)
    assert "domain_specialization" in listed.stdout
    as_json = moescope("table", run, "load", "--format", "json", "--layer", 2, cwd=place)
    rows = [json.loads(line) for line in as_json.stdout.splitlines()]
    assert len(rows) == 8 * 4
    assert {r["layer"] for r in rows} == {2}
    as_csv = moescope("table", run, "load", "--format", "csv", cwd=place)
    assert as_csv.stdout.splitlines()[0].startswith("phase,layer,expert,domain,tokens")
    about = moescope("table", run, "load", "--about", cwd=place)
    assert "activation_rate" in about.stdout
    for words, expected in (
        (("loads",), "no table"),
        (("load", "--layer", "9"), "it has 0, 1, 2, 3"),
        (("load", "--sort", "x"), "no column"),
    ):
        bad = moescope("table", run, *words, cwd=place)
        assert bad.returncode == 2
        assert expected in bad.stderr


def test_two_routes_are_aligned_and_the_parting_is_named(
    moescope: Callable[..., Done], place: Path
) -> None:
    words = ("the plan covers daily living", "the plan covers support daily living")
    done = moescope("paths", "moe", *words, cwd=place)
    assert done.returncode == 0, done.stderr
    assert "routes part at" in done.stdout
    as_json = moescope("paths", "moe", *words, "--format", "json", cwd=place)
    rows = [json.loads(line) for line in as_json.stdout.splitlines()]
    both = [r for r in rows if r["shared"] is not None]
    assert both[0]["shared"] == [1.0] * 4  # the same beginning takes the same route
    assert any(r["left"] is None for r in rows)


def test_inspect_needs_no_weights(
    moescope: Callable[..., Done], place: Path, tmp_path: Path
) -> None:
    bare = tmp_path / "bare"
    bare.mkdir()
    (bare / "config.json").write_bytes((place / "moe" / "config.json").read_bytes())
    done = moescope("inspect", bare, "--format", "json", cwd=place)
    made = json.loads(done.stdout)
    assert made["moe_layers"] == 4
    assert made["layers"][0]["experts"] == 8


def test_as_a_process_of_its_own_it_does_the_same(place: Path, tmp_path: Path) -> None:
    """Exit code, streams and interruption as a shell sees them."""
    env = {**os.environ, "HF_HUB_OFFLINE": "1", "COLUMNS": "200"}
    command = [sys.executable, "-m", "moescope"]
    bad = subprocess.run(
        [*command, "table", "nothing"],
        cwd=place,
        capture_output=True,
        text=True,
        env=env,
        check=False,
    )
    assert bad.returncode == 2
    assert bad.stdout == ""
    assert len(bad.stderr.strip().splitlines()) == 1
    write_corpus(tmp_path / "long.jsonl", documents_per_domain=400)
    long = [*command, "trace", place / "moe", tmp_path / "long.jsonl", "-o", tmp_path / "r"]
    process = subprocess.Popen(
        [*map(str, long), "--checkpoint-seconds", "0", "--batch-tokens", "256"],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=env,
    )  # fmt: skip
    deadline = time.monotonic() + 120
    while not (tmp_path / "r" / "manifest.json").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=120)
    assert process.returncode == 130
    assert "interrupted; what was finished stays, go on with the same command and --resume" in err
    assert "Traceback" not in err


def test_help_and_errors_do_not_wait_for_the_large_libraries() -> None:
    probe = (
        "import sys, moescope.cli.main; "
        "print('torch' in sys.modules, 'transformers' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "False"]


@pytest.mark.parametrize(
    "error", [MemoryError(), RuntimeError("DefaultCPUAllocator: can't allocate memory: 2048")]
)
def test_too_little_memory_for_a_sound_model_is_said_as_that(
    error: Exception,
    place: Path,
    moescope: Callable[..., Done],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def lacks(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(AutoModelForCausalLM, "from_config", lacks)
    done = moescope("inspect", "moe", cwd=place)
    assert done.returncode == 1
    assert done.stderr.startswith("error: there is not enough memory for this")
