"""Any model on the shipped text in one command, and the shipped text by name everywhere."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from tests.training.conftest import BASE
from transformers import AutoTokenizer, OlmoeConfig, OlmoeForCausalLM

import moescope.jobs
from moescope import CorpusSpec, open_corpus, open_run
from moescope.cli.main import app
from moescope.corpus import as_text
from moescope.demo import MODEL, QUERIES, SAMPLES, run_demo
from moescope.errors import BadInputError, CorpusError
from moescope.jobs import foresee
from moescope.models import load_model
from moescope.models.loading import how_held
from moescope.progress import Progress
from moescope.run.options import TraceOptions
from moescope.training.recipe_file import load_recipe


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random OLMoE of other sizes that reads the shipped text with the shipped tokenizer."""
    folder = tmp_path_factory.mktemp("other") / "olmoe"
    tokenizer = AutoTokenizer.from_pretrained(MODEL)
    config = OlmoeConfig(
        vocab_size=len(tokenizer), hidden_size=32, intermediate_size=16, num_hidden_layers=2,
        num_attention_heads=2, num_key_value_heads=2, num_experts=8, num_experts_per_tok=2,
        max_position_embeddings=512, dtype=torch.bfloat16,
    )  # fmt: skip
    torch.manual_seed(0)
    OlmoeForCausalLM(config).to(torch.bfloat16).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def test_the_demo_takes_another_model_and_says_beforehand_what_that_takes(
    other: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["demo", "--model", other, "--dtype", "float32", "--limit", 200, "-o", tmp_path / "r"]
    app([str(word) for word in words], standalone_mode=False)
    said = " ".join(capsys.readouterr().err.split())
    run = open_run(tmp_path / "r")
    assert (run.manifest.model["name"], run.manifest.model["dtype"]) == (str(other), "float32")
    assert run.manifest.corpus["path"] == "demo:queries"
    parameters = sum(p.numel() for p in load_model(other).model.parameters())
    tokens = run.manifest.progress["tokens"]
    before, _, after = said.partition("tokens a second")
    assert f"{4 * parameters / 1e6:.0f} MB of weights in float32, held in" in before
    assert f"{tokens:,} tokens, less than a minute at an estimated" in before
    assert f"{tokens:,} tokens of 4 domains" in after
    assert f"routers, in float32 on {run.manifest.model['processor']}" in after


def test_what_it_takes_is_said_before_weights_are_read(
    other: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[Progress] = []
    monkeypatch.setattr("moescope.models.loading.load_model", lambda _spec, **_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        run_demo(tmp_path / "r", model=other, on_progress=told.append)
    assert "of weights in" in told[0].note


def test_a_model_beyond_the_memory_is_said_to_be_read_layer_by_layer(other: Path) -> None:
    text = str(foresee(how_held(other, memory="1GB"), "demo:queries", TraceOptions(limit=50)))
    assert "read from disk layer by layer within 1.00 GB of memory (whole it would take" in text


def test_text_that_is_not_counted_to_its_end_is_said_to_be_at_least_so_long(
    other: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = foresee(how_held(other), "demo:samples")
    assert whole.tokens > 500_000
    assert "at least" not in str(whole)
    monkeypatch.setattr(moescope.jobs, "_COUNTING_SECONDS", 0.05)
    part = foresee(how_held(other), "demo:samples")
    assert part.tokens < whole.tokens
    assert f"at least {part.tokens:,} tokens, at least" in str(part)


def test_a_step_is_of_the_shipped_model_only(other: Path, tmp_path: Path) -> None:
    with pytest.raises(BadInputError, match="step"):
        run_demo(tmp_path / "r", model=other, step=44)
    assert not (tmp_path / "r").exists()


@pytest.mark.parametrize(("name", "path"), [("demo:queries", QUERIES), ("demo:samples", SAMPLES)])
def test_a_shipped_corpus_is_the_same_by_its_name_and_by_its_path(name: str, path: Path) -> None:
    by_name, by_path = open_corpus(as_text(name)), open_corpus(CorpusSpec(path=str(path)))
    assert by_name.fingerprint() == by_path.fingerprint()
    assert by_name.spec.reads == [str(path)]


def test_every_way_to_name_a_text_takes_a_shipped_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """As an argument, a flag, in a file of settings, from a run, and in a recipe."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "c.yaml").write_text(f"model: {MODEL}\ncorpus: demo:queries\nlimit: 60\nout: run\n")
    app(["trace", "--config", "c.yaml"], standalone_mode=False)
    few = ["--tokens", "40", "--controls", "2"]
    ablate = ["ablate", str(MODEL), "--experts", "L5E1", *few]
    app([*ablate, "--corpus", "demo:queries", "-o", "a"], standalone_mode=False)
    app([*ablate, "--run", "run", "-o", "b"], standalone_mode=False)
    assert "everyday" in capsys.readouterr().out
    recipe = {**BASE, "data": {**BASE["data"], "train": "demo:samples"}}
    (tmp_path / "r.yaml").write_text(json.dumps(recipe))
    assert load_recipe(tmp_path / "r.yaml").data.train.path == "demo:samples"


def test_a_run_of_a_shipped_text_is_gone_on_with_wherever_the_package_lies(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = run_demo(tmp_path / "r", limit=60).run
    moved = tmp_path / "moved.jsonl"
    shutil.copy(QUERIES, moved)
    monkeypatch.setitem(moescope.corpus.spec.SHIPPED, "demo:queries", moved)
    assert run_demo(tmp_path / "r", limit=60).run.manifest == first.manifest


def test_a_name_that_is_not_shipped_is_refused_with_those_that_are() -> None:
    with pytest.raises(CorpusError, match="did you mean demo:queries"):
        open_corpus(as_text("demo:query"))
