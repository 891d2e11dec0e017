"""What a model folder must hold before anything is measured on it."""

import json
import shutil
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file
from tests.support.same_run import assert_same_sums
from tests.support.saved import write_corpus
from transformers import AutoTokenizer

from moescope.corpus import CorpusSpec
from moescope.errors import ModelError
from moescope.metrics.runs import open_run
from moescope.models import ModelSpec, load_model
from moescope.models.loading import load_streamed
from moescope.run.options import TraceOptions
from moescope.trace import trace


@pytest.fixture
def folder(tiny_folder: Path, tmp_path: Path) -> Path:
    """A copy to be spoilt."""
    return Path(shutil.copytree(tiny_folder, tmp_path / "model"))


def test_weights_that_are_not_there_are_refused(folder: Path) -> None:
    kept = load_file(folder / "model.safetensors")
    name = next(n for n in sorted(kept) if "norm" in n)
    save_file({n: t for n, t in kept.items() if n != name}, folder / "model.safetensors")
    with pytest.raises(ModelError, match=rf"no weights for 1 parameters, first {name}; .* random"):
        load_model(ModelSpec(str(folder)))


def test_a_model_is_the_same_wherever_it_lies(tiny_folder: Path, folder: Path) -> None:
    one, other = (load_model(ModelSpec(str(place))) for place in (tiny_folder, folder))
    assert one.config_hash == other.config_hash
    assert (one.tokenizer_hash, one.weights_hash) == (other.tokenizer_hash, other.weights_hash)


def test_pickled_weights_are_refused(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(ModelError, match="safetensors"):
        load_model(ModelSpec(str(folder)))


@pytest.mark.parametrize("with_settings", [False, True], ids=["nothing", "settings alone"])
def test_a_model_without_a_tokenizer_is_refused(folder: Path, with_settings: bool) -> None:
    """Transformers makes up an empty tokenizer for some types; text would have no tokens."""
    for path in folder.glob("tokenizer*"):
        path.unlink()
    if with_settings:
        (folder / "tokenizer_config.json").write_text("{}", encoding="utf-8")
    for load in (load_model, load_streamed):
        with pytest.raises(ModelError, match="no tokenizer with this model; save"):
            load(ModelSpec(str(folder)))


@pytest.mark.parametrize("load", [load_model, load_streamed], ids=["resident", "streamed"])
def test_a_token_id_past_the_embedding_is_refused(
    folder: Path, tmp_path: Path, load: object
) -> None:
    tokenizer = AutoTokenizer.from_pretrained(folder)
    rows = int(json.loads((folder / "config.json").read_text())["vocab_size"])
    tokenizer.add_tokens([f"zz{n}" for n in range(rows - len(tokenizer) + 1)])
    tokenizer.save_pretrained(folder)
    last = tokenizer.convert_ids_to_tokens(rows)
    text = tmp_path / "text.txt"
    text.write_text(f"the plan covers {last} support", encoding="utf-8")
    with pytest.raises(ModelError, match=f"token id {rows}, the model knows {rows}; its tokenizer"):
        trace(load(ModelSpec(str(folder))), CorpusSpec(path=str(text)), tmp_path / "run")  # type: ignore[operator]


def test_padding_that_the_model_does_not_know_is_not_used(folder: Path, tmp_path: Path) -> None:
    """Many fine-tuned models have a padding token that was added to the tokenizer alone."""
    corpus = CorpusSpec(path=str(write_corpus(tmp_path / "texts.jsonl")))
    options = TraceOptions(keep="all", context=40)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    runs = []
    for turn in range(2):
        if turn:
            rows = int(json.loads((folder / "config.json").read_text())["vocab_size"])
            tokenizer.add_tokens([f"zz{n}" for n in range(rows - len(tokenizer))])
            tokenizer.add_special_tokens({"pad_token": "<new pad>"})
            tokenizer.save_pretrained(folder)
        loaded = load_model(ModelSpec(str(folder)))
        assert loaded.pad_id < loaded.vocab_size
        run = trace(loaded, corpus, tmp_path / f"run{turn}", options)
        runs.append(open_run(run))
    assert_same_sums(*runs)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("model.layers.2.mlp.gate.weight", r"the routing of layer 2 .* for \d+ of \d+ tokens"),
        ("lm_head.weight", r"the loss .* `dtype=bfloat16`"),
    ],
    ids=["router", "head"],
)
@pytest.mark.parametrize("load", [load_model, load_streamed], ids=["resident", "streamed"])
def test_numbers_that_are_not_finite_are_refused(
    folder: Path, tmp_path: Path, load: object, name: str, message: str
) -> None:
    kept = load_file(folder / "model.safetensors")
    kept[name][1, 0] = float("nan")
    save_file(kept, folder / "model.safetensors", metadata={"format": "pt"})
    corpus = CorpusSpec(path=str(write_corpus(tmp_path / "texts.jsonl")))
    with pytest.raises(ModelError, match=message):
        trace(load(ModelSpec(str(folder))), corpus, tmp_path / "run")  # type: ignore[operator]
