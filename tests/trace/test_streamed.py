"""The streamed engine: the same run as with the whole model in memory, in every architecture."""

import json
import os
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from tests.support.saved import save_tiny, write_corpus
from tests.support.tiny import tiny_model

from moescope.corpus import CorpusSpec
from moescope.errors import BadInputError, ModelError, WriteError
from moescope.metrics.runs import open_run
from moescope.models import ModelSpec, load_model, open_model, stored
from moescope.models.loading import load_streamed
from moescope.models.memory import parse_memory
from moescope.models.streaming import StreamedModel
from moescope.trace import TraceOptions, trace
from moescope.trace import streamed as streamed_module

TYPES = [
    "olmoe", "mixtral", "qwen2_moe", "qwen3_moe", "deepseek_v2", "deepseek_v3", "gpt_oss", "dbrx",
    "llama4_text", "gemma4_text", "granitemoeshared", "jamba", "qwen3_next", "glm_moe_dsa", "zaya",
    "jetmoe", "minimax", "ernie4_5_moe",
]  # fmt: skip
"""Shared experts, sliding windows, dense first layers, tied embeddings, linear attention, layers
that hand on more than one tensor, fused and per-expert checkpoints."""

OPTIONS = TraceOptions(context=32, limit=200)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> CorpusSpec:
    return CorpusSpec(path=str(write_corpus(tmp_path_factory.mktemp("text") / "c.jsonl")))


def same_run(left: Path, right: Path) -> float:
    """Checks that both runs hold the same routing; returns the largest difference in loss."""
    a, b = open_run(left), open_run(right)
    one, other = a.tokens(), b.tokens()
    assert one is not None
    assert other is not None
    assert a.manifest.model["weights_sha256"] == b.manifest.model["weights_sha256"]
    for layer in one.ids:
        np.testing.assert_array_equal(one.ids[layer], other.ids[layer])
        np.testing.assert_allclose(one.weights[layer], other.weights[layer], atol=1e-3)
    assert np.isfinite(one.nll).any()
    return float(np.nanmax(np.abs(one.nll - other.nll)))


@pytest.mark.parametrize("model_type", TYPES)
def test_a_streamed_run_equals_a_resident_one(
    model_type: str, corpus: CorpusSpec, tmp_path: Path
) -> None:
    folder = save_tiny(model_type, tmp_path / "model")
    spec = ModelSpec(str(folder))
    trace(load_model(spec), corpus, tmp_path / "resident", OPTIONS)
    trace(load_streamed(spec), corpus, tmp_path / "streamed", OPTIONS)
    assert same_run(tmp_path / "resident", tmp_path / "streamed") < 1e-5
    assert not (tmp_path / "streamed" / "streaming").exists()


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


def test_what_another_model_or_choice_left_behind_is_not_taken_up(
    corpus: CorpusSpec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before the first commit nothing but the scratch folder says what was begun."""
    one = ModelSpec(str(save_tiny("olmoe", tmp_path / "one")))
    other = ModelSpec(str(save_tiny("olmoe", tmp_path / "other", seed=1)))
    two_layers = OPTIONS.model_copy(update={"layers": (1, 2)})
    for name, spec, options in (
        ("model", other, two_layers), ("layers", one, OPTIONS),
        ("predictions", one, two_layers.model_copy(update={"predictions": False})),
    ):  # fmt: skip
        run = tmp_path / name
        with monkeypatch.context() as patch:
            patch.setattr(StreamedModel, "run_head", _interrupt)
            with pytest.raises(KeyboardInterrupt):
                trace(load_streamed(one), corpus, run, two_layers)
        assert any((run / "streaming").glob("hidden-*"))
        trace(load_streamed(spec), corpus, run, options)
        fresh = trace(load_streamed(spec), corpus, tmp_path / f"{name}-fresh", options)
        left, right = (open_run(p).aggregates("prefill").arrays for p in (run, fresh))
        for key, sums in left.items():
            np.testing.assert_array_equal(sums, right[key], err_msg=key)


def _interrupt(*_args: object) -> None:
    raise KeyboardInterrupt


@pytest.mark.parametrize("how", ["config", "config of the text", "dtype alone"])
def test_quantised_checkpoints_are_refused(how: str, tmp_path: Path) -> None:
    """Their scales are tensors of their own: without them the weights are plausible and wrong."""
    folder = save_tiny("deepseek_v3", tmp_path / "m")
    if how == "dtype alone":
        kept = load_file(folder / "model.safetensors")
        name = next(n for n in kept if n.endswith("down_proj.weight"))
        kept[name] = kept[name].to(torch.float8_e4m3fn)
        save_file(kept, folder / "model.safetensors", metadata={"format": "pt"})
    else:
        config = json.loads((folder / "config.json").read_text())
        config["quantization_config"] = {"quant_method": "fp8", "weight_block_size": [128, 128]}
        (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    with pytest.raises(ModelError, match=r"quantised.*cannot be streamed; use --engine resident"):
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


def test_memory_of_a_layer_goes_where_the_next_has_other_parts(tmp_path: Path) -> None:
    streamed = load_streamed(ModelSpec(str(save_tiny("deepseek_v3", tmp_path / "m")))).streamed
    assert streamed is not None
    streamed.load_layer(0)  # a dense one
    streamed.drop_layer(0)
    streamed.load_layer(1)
    held = {name for name, *_ in streamed._slot}
    assert held == {n for n, _ in streamed.layers[1].named_parameters()}


@pytest.mark.parametrize("model_type", ["olmoe", "gemma4_text", "jamba"])
def test_logits_of_a_large_vocabulary_are_made_for_few_positions_at_a_time(
    model_type: str, corpus: CorpusSpec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = ModelSpec(str(save_tiny(model_type, tmp_path / "m")))
    trace(load_model(spec), corpus, tmp_path / "resident", OPTIONS)
    loaded = load_streamed(spec)
    monkeypatch.setattr(streamed_module, "HEAD_CELLS", 7 * loaded.vocab_size)
    stock, sizes = StreamedModel.run_head, []

    def counted(self, *args):  # type: ignore[no-untyped-def]
        logits = stock(self, *args)
        sizes.append(logits.shape[0] * logits.shape[1])
        return logits

    monkeypatch.setattr(StreamedModel, "run_head", counted)
    trace(loaded, corpus, tmp_path / "streamed", OPTIONS)
    assert max(sizes) == 7
    assert same_run(tmp_path / "resident", tmp_path / "streamed") < 1e-5


def test_only_one_layer_is_in_memory_at_a_time(tmp_path: Path) -> None:
    streamed = load_streamed(ModelSpec(str(save_tiny("olmoe", tmp_path / "m")))).streamed
    assert streamed is not None

    def loaded() -> list[int]:
        return [
            i
            for i, layer in enumerate(streamed.layers)
            if any(not p.is_meta for p in layer.parameters())
        ]

    assert loaded() == []
    streamed.load_layer(2)
    assert loaded() == [2]
    first = next(p for p in streamed.layers[2].parameters() if p.dim() == 3).data_ptr()
    streamed.drop_layer(2)
    streamed.load_layer(3)
    assert loaded() == [3]
    assert next(p for p in streamed.layers[3].parameters() if p.dim() == 3).data_ptr() == first


def test_a_trace_that_died_in_a_layer_goes_on_in_that_layer(
    corpus: CorpusSpec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Layers 0 and 1 of 4 were done for all batches, layer 2 for the first only."""
    spec = ModelSpec(str(save_tiny("olmoe", tmp_path / "m")))
    options = OPTIONS.model_copy(update={"batch_tokens": 256})
    whole = trace(load_streamed(spec), corpus, tmp_path / "whole", options)
    calls: Counter[int] = Counter()
    stock = StreamedModel.run_layer
    dies_at = (2, 2)

    def counted(self, index, *args):  # type: ignore[no-untyped-def]
        calls[index] += 1
        if (index, calls[index]) == dies_at:
            raise KeyboardInterrupt
        return stock(self, index, *args)

    monkeypatch.setattr(StreamedModel, "run_layer", counted)
    with pytest.raises(KeyboardInterrupt):
        trace(load_streamed(spec), corpus, tmp_path / "killed", options)
    batches = calls[0]
    assert batches > 2
    assert calls == {0: batches, 1: batches, 2: 2}
    dies_at = (-1, -1)
    calls.clear()
    trace(load_streamed(spec), corpus, tmp_path / "killed", options, resume=True)
    assert calls == {2: batches - 1, 3: batches}
    assert same_run(whole, tmp_path / "killed") == 0.0


def test_what_another_text_left_behind_is_not_taken_up(
    corpus: CorpusSpec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = ModelSpec(str(save_tiny("olmoe", tmp_path / "m")))
    run = tmp_path / "run"

    def dies(*_args: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(StreamedModel, "run_head", dies)
        with pytest.raises(KeyboardInterrupt):
            trace(load_streamed(spec), corpus, run, OPTIONS)
    assert any((run / "streaming").glob("hidden-*"))
    shorter = OPTIONS.model_copy(update={"limit": 60})
    trace(load_streamed(spec), corpus, run, shorter)
    trace(load_model(spec), corpus, tmp_path / "resident", shorter)
    assert same_run(run, tmp_path / "resident") < 1e-5


def test_the_engine_is_chosen_by_what_fits(tmp_path: Path) -> None:
    spec = ModelSpec(str(save_tiny("olmoe", tmp_path / "m")))
    assert open_model(spec).streamed is None
    assert open_model(spec, engine="streamed").streamed is not None
    with pytest.raises(ModelError, match=r"too little to hold.*--engine streamed"):
        open_model(spec, engine="resident", memory="10MB")
    with pytest.raises(ModelError, match=r"too little to stream.*it needs .* for a layer"):
        open_model(spec, memory="10MB")


def test_a_model_whose_layers_do_not_stand_alone_is_refused_with_the_reason(tmp_path: Path) -> None:
    spec = ModelSpec(str(save_tiny("inkling2_text", tmp_path / "m")))
    with pytest.raises(ModelError, match="cannot be streamed: a layer reads what earlier layers"):
        load_streamed(spec)


def test_generation_is_refused(corpus: CorpusSpec, tmp_path: Path) -> None:
    spec = ModelSpec(str(save_tiny("olmoe", tmp_path / "m")))
    options = OPTIONS.model_copy(update={"generate": 3})
    with pytest.raises(BadInputError, match="--engine resident"):
        trace(load_streamed(spec), corpus, tmp_path / "run", options)


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


def test_a_full_disk_says_so_and_what_was_done_stays(
    corpus: CorpusSpec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = ModelSpec(str(save_tiny("olmoe", tmp_path / "m")))
    written: list[Path] = []

    def fill(tensors: dict, path: Path) -> None:
        if len(written) == 3:
            raise OSError(28, "No space left on device")
        written.append(Path(path))
        save_file(tensors, path)

    with monkeypatch.context() as patch:
        patch.setattr("moescope.trace.streamed.save_file", fill)
        with pytest.raises(WriteError, match=r"No space left.*--resume"):
            trace(load_streamed(spec), corpus, tmp_path / "run", OPTIONS)
    assert any((tmp_path / "run" / "streaming").glob("hidden-*"))
    trace(load_streamed(spec), corpus, tmp_path / "run", OPTIONS, resume=True)
    trace(load_model(spec), corpus, tmp_path / "resident", OPTIONS)
    assert same_run(tmp_path / "run", tmp_path / "resident") < 1e-5


@pytest.mark.parametrize(
    ("text", "count"),
    [("4GB", 4_000_000_000), ("3.5g", 3_500_000_000), ("2GiB", 2 << 30), ("800 MB", 800_000_000)],
)
def test_sizes_are_read_as_people_write_them(text: str, count: int) -> None:
    assert parse_memory(text) == count


@pytest.mark.parametrize("text", ["lots", "", "-3GB", "1.2.3GB", "."])
def test_other_sizes_are_refused(text: str) -> None:
    with pytest.raises(BadInputError, match="is no size"):
        parse_memory(text)
