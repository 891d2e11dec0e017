"""Checkpoints that are streamed: their files, dtypes, ties and other stacks; what is refused."""

import json
import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tests.support.saved import save_tiny, tiny_tokenizer, write_corpus
from tests.support.streamed import OPTIONS, same_run
from tests.support.tiny import randomize_routing, tiny_config, tiny_model
from transformers import AutoConfig, AutoModelForCausalLM

from moescope.corpus import CorpusSpec
from moescope.errors import ModelError
from moescope.models import ModelSpec, load_model, stored
from moescope.models.loading import load_streamed
from moescope.trace import trace


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> CorpusSpec:
    return CorpusSpec(path=str(write_corpus(tmp_path_factory.mktemp("text") / "c.jsonl")))


def test_checkpoints_in_several_files_and_in_bfloat16_are_read_too(
    corpus: CorpusSpec, tmp_path: Path
) -> None:
    folder = save_tiny("mixtral", tmp_path / "model")
    tiny_model("mixtral", dtype=torch.bfloat16).save_pretrained(folder, max_shard_size="40KB")
    (folder / "model.safetensors").unlink(missing_ok=True)
    assert len(list(folder.glob("model-*.safetensors"))) > 2
    spec = ModelSpec(str(folder), dtype="float32")
    loaded = load_streamed(spec)
    assert loaded.streamed is not None
    loaded.streamed.load_layer(1)
    dtypes = {n.split(".")[-1]: p.dtype for n, p in loaded.streamed.layers[1].named_parameters()}
    assert dtypes.pop("gate_up_proj") == dtypes.pop("down_proj") == torch.bfloat16
    assert set(dtypes.values()) == {torch.float32}  # of a layer, the experts alone stay as stored
    loaded.streamed.drop_layer(1)
    trace(load_model(spec), corpus, tmp_path / "a", OPTIONS)
    trace(loaded, corpus, tmp_path / "b", OPTIONS)
    assert same_run(tmp_path / "a", tmp_path / "b") < 1e-5


@pytest.mark.parametrize(
    ("model_type", "narrow"),
    [
        ("olmoe", ["lm_head", "model.embed_tokens"]),
        ("lfm2_moe", ["lm_head", "model.embed_tokens"]),  # tied
        ("gemma4_text", []),  # tied, and the embedding computes with its weights
        ("hy_v4", ["model.embed_tokens"]),  # rounds its last states to the dtype of the head
        ("cohere2_moe", ["lm_head", "model.embed_tokens"]),
    ],
)
def test_embedding_and_head_stay_as_stored_where_the_numbers_are_the_same(
    model_type: str, narrow: list[str], corpus: CorpusSpec, tmp_path: Path
) -> None:
    folder = save_tiny(model_type, tmp_path / "model")
    tiny_model(model_type, dtype=torch.bfloat16).save_pretrained(folder)
    spec = ModelSpec(str(folder), dtype="float32")
    loaded = load_streamed(spec)
    ends = ("lm_head", "model.embed_tokens")
    kept = [n for n in ends if loaded.model.get_submodule(n).weight.dtype == torch.bfloat16]
    assert kept == narrow
    trace(load_model(spec), corpus, tmp_path / "a", OPTIONS)
    trace(loaded, corpus, tmp_path / "b", OPTIONS)
    assert same_run(tmp_path / "a", tmp_path / "b") < 1e-5


def test_the_fingerprint_reads_what_it_looks_at_and_no_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = ModelSpec(str(save_tiny("mixtral", tmp_path / "m", vocab_size=20_000)))
    loaded = load_streamed(spec)
    assert loaded.streamed is not None
    looked_at = sum(min(64 * 4, 4 * p.numel()) for p in loaded.model.parameters())
    stock, sizes = stored._read_at, []

    def counted(file: int, view: memoryview, begin: int) -> int:
        sizes.append(len(view))
        return stock(file, view, begin)

    monkeypatch.setattr(stored, "_read_at", counted)
    assert loaded.streamed.fingerprint() == load_model(spec).weights_hash
    assert 0 < sum(sizes) < 1.3 * looked_at  # 64 elements of each parameter, a few more in some
    assert sum(sizes) < (tmp_path / "m" / "model.safetensors").stat().st_size / 50


def test_files_are_read_where_the_system_has_no_preadv(
    corpus: CorpusSpec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = ModelSpec(str(save_tiny("olmoe", tmp_path / "m")))
    trace(load_model(spec), corpus, tmp_path / "resident", OPTIONS)
    for name in ("preadv", "posix_fadvise"):
        monkeypatch.delattr(os, name)
    trace(load_streamed(spec), corpus, tmp_path / "streamed", OPTIONS)
    assert same_run(tmp_path / "resident", tmp_path / "streamed") < 1e-5


def test_quantised_checkpoints_are_refused(tmp_path: Path) -> None:
    """Their scales are tensors of their own: without them the weights are plausible and wrong."""
    folder = save_tiny("deepseek_v3", tmp_path / "m")
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "fp8", "weight_block_size": [128, 128]}
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    with pytest.raises(ModelError, match=r"quantised.*cannot be streamed; use `engine=resident`"):
        load_streamed(ModelSpec(str(folder)))


@pytest.mark.parametrize("which", ["both", "the head alone", "the embedding alone"])
def test_tied_weights_are_what_the_files_say(
    which: str, corpus: CorpusSpec, tmp_path: Path
) -> None:
    """The config ties the head to the embedding, and a checkpoint may hold either, or both."""
    folder = save_tiny("lfm2_moe", tmp_path / "m")
    kept = load_file(folder / "model.safetensors")
    embedding = "model.embed_tokens.weight"
    assert "lm_head.weight" not in kept
    if which == "both":
        kept["lm_head.weight"] = kept[embedding].flip(0).contiguous()
    elif which == "the head alone":
        kept["lm_head.weight"] = kept.pop(embedding)
    save_file(kept, folder / "model.safetensors", metadata={"format": "pt"})
    spec = ModelSpec(str(folder))
    trace(load_model(spec), corpus, tmp_path / "resident", OPTIONS)
    trace(load_streamed(spec), corpus, tmp_path / "streamed", OPTIONS)
    assert same_run(tmp_path / "resident", tmp_path / "streamed") < 1e-5


def test_a_model_that_also_sees_is_streamed_through_its_language_layers(
    corpus: CorpusSpec, tmp_path: Path
) -> None:
    text = tiny_config("gemma4").text_config.to_dict()
    vision = {
        "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 5,
        "num_attention_heads": 2, "num_key_value_heads": 2, "head_dim": 8,
    }  # fmt: skip
    config = AutoConfig.for_model("gemma4", text_config=text, vision_config=vision)
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config)
    randomize_routing(model)
    model.save_pretrained(tmp_path / "m")
    tiny_tokenizer().save_pretrained(tmp_path / "m")
    spec = ModelSpec(str(tmp_path / "m"))
    loaded = load_streamed(spec)
    assert loaded.streamed is not None
    assert len(loaded.streamed.layers) == 4
    trace(load_model(spec), corpus, tmp_path / "resident", OPTIONS)
    trace(loaded, corpus, tmp_path / "streamed", OPTIONS)
    assert same_run(tmp_path / "resident", tmp_path / "streamed") < 1e-5


def test_a_model_whose_layers_do_not_stand_alone_is_refused_with_the_reason(tmp_path: Path) -> None:
    spec = ModelSpec(str(save_tiny("inkling2_text", tmp_path / "m")))
    with pytest.raises(ModelError, match="cannot be streamed: a layer reads what earlier layers"):
        load_streamed(spec)


def test_damaged_checkpoints_are_refused_with_the_tensor_or_file_named(tmp_path: Path) -> None:
    folder = save_tiny("mixtral", tmp_path / "m")
    spec, file = ModelSpec(str(folder)), folder / "model.safetensors"
    stock = load_file(file)
    name = next(k for k in stock if ".experts.3." in k)

    save_file({k: v for k, v in stock.items() if k != name}, file, metadata={"format": "pt"})
    with pytest.raises(ModelError, match="experts"):
        load_all(spec)
    save_file({**stock, name: stock[name][:-1].clone()}, file, metadata={"format": "pt"})
    with pytest.raises(ModelError, match="does not fit its config"):
        load_all(spec)
    norm = next(k for k in stock if "input_layernorm" in k)
    save_file({k: v for k, v in stock.items() if k != norm}, file, metadata={"format": "pt"})
    with pytest.raises(ModelError, match=rf"no weights for 1 parameters, first {norm}"):
        load_all(spec)
    file.write_bytes(file.read_bytes()[:1000])
    with pytest.raises(ModelError, match=r"model\.safetensors cannot be read"):
        load_all(spec)
    file.unlink()
    index = {"weight_map": dict.fromkeys(stock, "model-00001-of-00002.safetensors")}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(ModelError, match=r"shard model-00001-of-00002\.safetensors, which is not"):
        load_all(spec)


def load_all(spec: ModelSpec) -> None:
    streamed = load_streamed(spec).streamed
    assert streamed is not None
    for index in range(len(streamed.layers)):
        streamed.load_layer(index)
        streamed.drop_layer(index)
