"""The streamed engine: the same run as with the whole model in memory, in every architecture."""

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from safetensors.torch import save_file
from tests.support.multimodal import MULTIMODAL_TYPES
from tests.support.saved import save_tiny, write_corpus
from tests.support.streamed import OPTIONS, same_run
from tests.support.tiny import MOE_MODEL_TYPES, SINCE

from moescope.corpus import CorpusSpec
from moescope.errors import BadInputError, ModelError, WriteError
from moescope.metrics.runs import open_run
from moescope.models import ModelSpec, load_model, open_model
from moescope.models.anatomy import REFUSED
from moescope.models.loading import load_streamed
from moescope.models.streaming import UNSTREAMED, StreamedModel
from moescope.trace import streamed as streamed_module
from moescope.trace import trace

TYPES = [
    "olmoe", "mixtral", "qwen2_moe", "qwen3_moe", "deepseek_v2", "deepseek_v3", "gpt_oss", "dbrx",
    "llama4_text", "gemma4_text", "granitemoeshared", "jamba", "qwen3_next", "glm_moe_dsa", "zaya",
    "jetmoe", "minimax", "ernie4_5_moe",
    *sorted((SINCE.keys() & set(MOE_MODEL_TYPES)) - UNSTREAMED.keys() - REFUSED.keys()),
    *(t for t in MULTIMODAL_TYPES if not t.startswith("inkling2")),
]  # fmt: skip
"""Shared experts, sliding windows, dense first layers, tied embeddings, linear attention, layers
that hand on more than one tensor, fused and per-expert checkpoints."""


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> CorpusSpec:
    return CorpusSpec(path=str(write_corpus(tmp_path_factory.mktemp("text") / "c.jsonl")))


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


def test_a_model_that_cannot_be_streamed_is_refused_in_its_wrapping_too(tmp_path: Path) -> None:
    spec = ModelSpec(str(save_tiny("inkling2", tmp_path / "m")))
    with pytest.raises(ModelError, match="inkling2_text models cannot be streamed"):
        load_streamed(spec)


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
    with pytest.raises(ModelError, match=r"too little to hold.*`engine=streamed`"):
        open_model(spec, engine="resident", memory="10MB")
    with pytest.raises(ModelError, match=r"too little to stream.*it needs .* for a layer"):
        open_model(spec, memory="10MB")


def test_generation_is_refused(corpus: CorpusSpec, tmp_path: Path) -> None:
    spec = ModelSpec(str(save_tiny("olmoe", tmp_path / "m")))
    options = OPTIONS.model_copy(update={"generate": 3})
    with pytest.raises(BadInputError, match="`engine=resident`"):
        trace(load_streamed(spec), corpus, tmp_path / "run", options)


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
        with pytest.raises(WriteError, match="the disk is full; what was finished"):
            trace(load_streamed(spec), corpus, tmp_path / "run", OPTIONS)
    assert any((tmp_path / "run" / "streaming").glob("hidden-*"))
    trace(load_streamed(spec), corpus, tmp_path / "run", OPTIONS, resume=True)
    trace(load_model(spec), corpus, tmp_path / "resident", OPTIONS)
    assert same_run(tmp_path / "run", tmp_path / "resident") < 1e-5
