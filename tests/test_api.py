"""What people type in Python: paths, names, lists, models in memory; and what they see of it."""

import importlib
import inspect
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests.support.tiny import tiny_model
from torch import nn
from transformers import AutoModelForCausalLM, AutoTokenizer

import moescope
from moescope.corpus import CorpusSpec, as_text, open_corpus
from moescope.errors import BadInputError, CorpusError, ModelError, MoescopeError, RunError
from moescope.files import sha256_of
from moescope.intervene import edited, mask, measure_damage, steer, sweep_experts
from moescope.launch import LaunchOptions, launch
from moescope.measure.windows import choose_windows, run_windows
from moescope.metrics.runs import AnalyzedRun, compare_runs, open_run
from moescope.models import LoadedModel, ModelSpec, as_model, load_meta, load_model, wrap_model
from moescope.run.options import TraceOptions
from moescope.trace import trace
from moescope.trace.routes import compare_routes, route

TEXTS = [
    {"text": "the river runs past the old mill and the bridge", "domain": "water"},
    {"text": "the court hears the case and the judge decides", "domain": "legal", "id": "case-1"},
    "a plain text of some words that says nothing at all",
]
SHORT = TraceOptions(context=40)


def in_memory(folder: Path) -> LoadedModel:
    hf = AutoModelForCausalLM.from_pretrained(folder)
    return wrap_model(hf, AutoTokenizer.from_pretrained(folder))


class TestAModel:
    def test_is_a_path_or_a_spec_or_open(self, tiny_folder: Path, tiny_loaded: LoadedModel) -> None:
        for given in (str(tiny_folder), tiny_folder, ModelSpec(str(tiny_folder))):
            assert load_model(given).weights_hash == tiny_loaded.weights_hash
            assert as_model(given).spec == tiny_loaded.spec
        assert as_model(tiny_loaded) is tiny_loaded
        assert load_meta(tiny_folder) == tiny_loaded.anatomy
        assert ModelSpec(tiny_folder).model == str(tiny_folder)  # type: ignore[arg-type]

    @pytest.mark.parametrize("given", [None, 7, ["a"], b"x", {"model": "x"}])
    @pytest.mark.parametrize("call", [load_model, load_meta, as_model])
    def test_is_nothing_else(self, call: Any, given: object) -> None:
        with pytest.raises(BadInputError, match="a model is a hub id, the path of a folder, a Mod"):
            call(given)

    def test_of_transformers_is_to_be_wrapped(self, tiny_loaded: LoadedModel) -> None:
        with pytest.raises(BadInputError, match=r"wrap_model\(model, tokenizer\)"):
            compare_routes(tiny_loaded.model, "a", "b")  # type: ignore[arg-type]

    def test_that_is_streamed_is_refused_where_it_must_be_whole(self, tiny_folder: Path) -> None:
        streamed = moescope.open_model(tiny_folder, engine="streamed")
        for call in (
            lambda: route(streamed, "a text"),
            lambda: measure_damage(streamed, [], "L1E0"),
        ):
            with pytest.raises(ModelError, match="all its weights must be in memory"):
                call()


class TestAModelInMemory:
    def test_has_the_hashes_of_its_folder(
        self, tiny_folder: Path, tiny_loaded: LoadedModel
    ) -> None:
        tokenizer = AutoTokenizer.from_pretrained(tiny_folder)
        tokenizer(["a", "b c d"], padding=True, truncation=True, max_length=2)  # leaves a trace
        hf = AutoModelForCausalLM.from_pretrained(tiny_folder)
        wrapped = wrap_model(hf.train(), tokenizer)
        for name in ("config_hash", "weights_hash", "tokenizer_hash", "dtype", "stored_dtype"):
            assert getattr(wrapped, name) == getattr(tiny_loaded, name), name
        assert wrapped.anatomy == tiny_loaded.anatomy
        assert wrapped.device == "cpu"
        assert not hf.training
        assert wrap_model(hf, tokenizer, "mine").spec.model == "mine"
        assert len(hf.get_input_embeddings()._forward_pre_hooks) == 1  # wrapped twice

    def test_makes_a_run_that_the_folder_goes_on_with(
        self, tiny_folder: Path, tiny_corpus: Path, tmp_path: Path
    ) -> None:
        def stop(progress: Any) -> None:
            if progress.done > 300:
                raise KeyboardInterrupt

        options = TraceOptions(context=40, pool_tokens=64, checkpoint_seconds=0)
        with pytest.raises(KeyboardInterrupt):
            trace(in_memory(tiny_folder), tiny_corpus, tmp_path / "a", options, on_progress=stop)
        trace(tiny_folder, tiny_corpus, tmp_path / "a", options, resume=True)
        trace(tiny_folder, tiny_corpus, tmp_path / "b", options)
        for name in ("documents.parquet", "sample.parquet", "vocabulary.json"):
            assert sha256_of(tmp_path / "a" / name) == sha256_of(tmp_path / "b" / name)

    def test_whose_weights_changed_is_another_model(
        self, tiny_folder: Path, tiny_corpus: Path, tmp_path: Path
    ) -> None:
        trace(tiny_folder, tiny_corpus, tmp_path / "run", SHORT)
        hf = AutoModelForCausalLM.from_pretrained(tiny_folder)
        with torch.no_grad():
            next(p for n, p in hf.named_parameters() if "gate" in n).mul_(1.5)
        changed = wrap_model(hf, AutoTokenizer.from_pretrained(tiny_folder))
        with pytest.raises(RunError, match=r"cannot resume .*: the model has other weights"):
            trace(changed, tiny_corpus, tmp_path / "run", SHORT, resume=True)
        with pytest.raises(RunError, match="weights not the same"):
            run_windows(changed, open_run(tmp_path / "run"))

    def test_that_changed_since_it_was_wrapped_is_refused_until_it_is_wrapped_again(
        self, tiny_folder: Path
    ) -> None:
        wrapped = in_memory(tiny_folder)
        route(wrapped, "a text")
        found = [p for n, p in wrapped.model.named_parameters() if "experts.down_proj" in n]
        found[0].data.mul_(2)
        for call in (
            lambda: route(wrapped, "a text"),
            lambda: trace(wrapped, TEXTS, tiny_folder.parent / "never", SHORT),
        ):
            with pytest.raises(ModelError, match="weights were changed since it was opened"):
                call()
        assert not (tiny_folder.parent / "never").exists()
        route(wrap_model(wrapped.model, wrapped.tokenizer), "a text")

    def test_in_another_precision_is_said_to_be_that(
        self, tiny_folder: Path, tiny_corpus: Path, tmp_path: Path
    ) -> None:
        run = trace(tiny_folder, tiny_corpus, tmp_path / "run", SHORT)
        hf = AutoModelForCausalLM.from_pretrained(tiny_folder, dtype=torch.bfloat16)
        other = wrap_model(hf, AutoTokenizer.from_pretrained(tiny_folder))
        with pytest.raises(RunError, match="model dtype was 'float32', now 'bfloat16'"):
            trace(other, tiny_corpus, run, SHORT, resume=True)
        with pytest.raises(RunError, match="not the same, and float32 there, bfloat16 here"):
            run_windows(other, open_run(run))

    def test_is_what_a_profile_takes_too(self, tiny_folder: Path, tmp_path: Path) -> None:
        model, plain = in_memory(tiny_folder), moescope.ProfileOptions(pipeline=None)
        run = trace(model, TEXTS, tmp_path / "run", SHORT)
        made = moescope.profile_expert(run, "L1E0", plain, model=model)
        assert (
            made.summary == moescope.profile_expert(run, "L1E0", plain, model=tiny_folder).summary
        )
        with torch.no_grad():
            next(model.model.parameters()).mul_(1.5)
        other = wrap_model(model.model, model.tokenizer)
        with pytest.raises(RunError, match="weights not the same"):  # though figures are kept
            moescope.profile_expert(run, "L1E0", plain, model=other)

    def test_is_refused_in_one_line(self, tiny_folder: Path, tiny_loaded: LoadedModel) -> None:
        hf, tokenizer = tiny_loaded.model, tiny_loaded.tokenizer
        with pytest.raises(BadInputError, match="takes a model of transformers"):
            wrap_model("name", tokenizer)  # type: ignore[arg-type]
        with pytest.raises(BadInputError, match="takes a model of transformers"):
            wrap_model(nn.Linear(2, 2), tokenizer)
        with pytest.raises(BadInputError, match="its second argument; got NoneType"):
            wrap_model(hf, None)
        from transformers import LlamaConfig, LlamaForCausalLM

        dense = LlamaForCausalLM(
            LlamaConfig(vocab_size=64, hidden_size=16, intermediate_size=16, num_hidden_layers=1,
                        num_attention_heads=2, num_key_value_heads=2)
        )  # fmt: skip
        with pytest.raises(ModelError, match=r"no MoE|no router|dense|Mixture"):
            wrap_model(dense, tokenizer)
        with torch.device("meta"):
            empty = AutoModelForCausalLM.from_config(hf.config)  # type: ignore[attr-defined]
        with pytest.raises(ModelError, match="in the memory of one device"):
            wrap_model(empty, tokenizer)

    def test_is_called_by_its_class_where_it_came_from_nowhere(
        self, tiny_loaded: LoadedModel
    ) -> None:
        made = wrap_model(tiny_model("olmoe"), tiny_loaded.tokenizer)
        assert made.spec.model == "OlmoeForCausalLM in memory"


class TestTexts:
    def test_are_a_path_or_a_spec_or_a_list(self, tiny_corpus: Path) -> None:
        whole = open_corpus(CorpusSpec(path=str(tiny_corpus))).fingerprint()
        for given in (str(tiny_corpus), tiny_corpus, CorpusSpec(path=str(tiny_corpus))):
            assert open_corpus(as_text(given)).fingerprint() == whole
        found = [(d.doc_id, d.domain) for d in open_corpus(as_text(TEXTS))]
        assert found == [("text:1", "water"), ("case-1", "legal"), ("text:3", "text")]
        assert as_text(tuple(TEXTS)).reads == []

    @pytest.mark.parametrize(
        ("given", "said"),
        [
            (None, "got NoneType"),
            (7, "got int"),
            (b"bytes", "got bytes"),
            ({"text": "a"}, "got dict"),
            (iter(["a"]), "got list_iterator"),
            ([], "the list of texts is empty"),
            (["a", 7], "text 2 of the list: expected a string, or a dict.*got int"),
            (["a", {"txt": "b"}], r"text 2 of the list.*a dict without 'text' \(txt\)"),
            ("one sentence that is not a path", r"give it in a list: \[text\]"),
        ],
    )
    def test_are_nothing_else(self, given: Any, said: str) -> None:
        with pytest.raises(BadInputError, match=said):
            as_text(given)

    def test_in_a_list_meet_the_rules_of_files(self) -> None:
        for texts, said in (
            (["a", " "], "text 2: empty text"),
            ([{"text": "a", "id": "x"}, {"text": "b", "id": "x"}], "text 2: duplicate id"),
            ([{"text": "a", "domain": "all"}], "reserved"),
            ([{"text": 5}], "text 1: text is not a string"),
        ):
            with pytest.raises(CorpusError, match=said):
                list(open_corpus(as_text(texts)))

    def test_in_a_list_are_kept_in_the_run(self, tiny_loaded: LoadedModel, tmp_path: Path) -> None:
        run = open_run(trace(tiny_loaded, TEXTS, tmp_path / "run", SHORT))
        assert run.domains == ["water", "legal", "text"]
        assert run.manifest.corpus["path"] == "texts in memory"
        windows = run_windows(tiny_loaded, run)
        assert {w.doc for w in windows} == {"text:1", "case-1", "text:3"}
        assert len(choose_windows(tiny_loaded, TEXTS, options=SHORT)) == len(windows)
        assert trace(tiny_loaded, TEXTS, tmp_path / "run", SHORT, resume=True) == run.path
        with pytest.raises(RunError, match="texts in memory is not the corpus"):
            trace(tiny_loaded, TEXTS[::-1], tmp_path / "run", SHORT, resume=True)
        (tmp_path / "run" / "texts.jsonl").unlink()
        with pytest.raises(RunError, match=r"made of texts in memory.*give the texts themselves"):
            run_windows(tiny_loaded, run)

    def test_in_a_list_that_cannot_be_used_leave_no_folder(
        self, tiny_loaded: LoadedModel, tmp_path: Path
    ) -> None:
        with pytest.raises(CorpusError):
            trace(tiny_loaded, ["a", ""], tmp_path / "run")
        assert not (tmp_path / "run").exists()

    def test_in_a_list_are_not_for_workers(self, tiny_folder: Path, tmp_path: Path) -> None:
        with pytest.raises(BadInputError, match="write the texts to a file"):
            launch(tiny_folder, TEXTS, tmp_path / "run", how=LaunchOptions(workers=1))
        assert not (tmp_path / "run").exists()


class TestWhereAModelIsTaken:
    def test_texts_stand_for_windows(self, tiny_loaded: LoadedModel, tiny_run: AnalyzedRun) -> None:
        first = tiny_loaded.anatomy.layer_numbers[0]
        windows = choose_windows(tiny_loaded, TEXTS)
        by_list, by_windows = (
            measure_damage(tiny_loaded, given, f"L{first}E0", controls=0).table.to_pylist()
            for given in (TEXTS, windows)
        )
        assert str(by_list) == str(by_windows)  # NaN is equal to nothing
        swept = sweep_experts(tiny_loaded, TEXTS, [first])
        assert len(swept.experts) == tiny_loaded.anatomy.layers[0].num_experts

    def test_an_edit_is_an_edit(self, tiny_loaded: LoadedModel, tiny_folder: Path) -> None:
        with pytest.raises(BadInputError, match=r"an edit is what bias, .*; got 'L1E0'"):
            steer(tiny_loaded, "a text", "L1E0")  # type: ignore[arg-type]
        with (
            pytest.raises(BadInputError, match="edited takes a model that is open"),
            edited(str(tiny_folder), mask("L1E0")),  # type: ignore[arg-type]
        ):
            pass

    def test_a_run_is_a_path_or_open(self, tiny_run: AnalyzedRun) -> None:
        assert compare_runs(tiny_run.path, tiny_run).num_rows
        with pytest.raises(BadInputError, match="a run is the path of its folder"):
            inspect.unwrap(open_run)(7)  # the tests check types before it could


class TestRoute:
    TEXT = "the river runs past the old mill"

    @pytest.mark.parametrize("wrapped", [False, True])
    def test_is_arrays_by_layer_of_what_transformers_routers_answer(
        self, wrapped: bool, tiny_folder: Path, tiny_loaded: LoadedModel
    ) -> None:
        routes = route(in_memory(tiny_folder) if wrapped else tiny_loaded, self.TEXT)
        ids = tiny_loaded.tokenizer(self.TEXT, return_tensors="pt")["input_ids"]
        with torch.inference_mode():
            out = tiny_loaded.model(ids, output_router_logits=True)
        assert routes.token_ids.tolist() == ids[0].tolist()
        assert list(routes.layers) == list(tiny_loaded.anatomy.layer_numbers)
        for number, logits in zip(routes.layers, out.router_logits, strict=True):
            here, probs = routes[number], logits.softmax(-1)
            assert np.allclose(here.logits, logits, atol=1e-5)
            assert np.allclose(here.probs, probs, atol=1e-6)
            assert here.topk_ids.shape == here.topk_weights.shape == (len(routes.tokens), 3)
            assert (here.topk_ids == probs.topk(3).indices.numpy()).all()
        with pytest.raises(BadInputError, match="layer 99 is not an MoE layer"):
            routes[99]

    def test_is_a_frame_of_tokens_by_layers_by_experts(self, tiny_loaded: LoadedModel) -> None:
        frame = route(tiny_loaded, self.TEXT).to_pandas()
        rows = compare_routes(tiny_loaded, self.TEXT, self.TEXT).rows
        layers = tiny_loaded.anatomy.layers
        assert len(frame) == len(rows) * sum(m.top_k for m in layers)
        assert "".join(frame.groupby("position").token.first()) == "".join(
            r.left or "" for r in rows
        )
        for number, layer in enumerate(layers):
            here = frame[frame.layer == layer.layer_idx]
            for position, row in enumerate(rows):
                mine = here[here.position == position]
                assert mine["rank"].tolist() == list(range(layer.top_k))
                assert row.left_ids is not None
                assert mine.expert.tolist() == row.left_ids[number]
                assert (mine.weight.diff().dropna() <= 0).all()
        assert frame.prob.between(0, 1).all()

    def test_gives_every_expert_on_request(self, tiny_loaded: LoadedModel) -> None:
        routes = route(tiny_loaded, self.TEXT)
        frame, chosen = routes.to_pandas(every=True), routes.to_pandas()
        assert np.allclose(frame.groupby(["position", "layer"]).prob.sum(), 1)
        kept = frame[frame["rank"] >= 0].sort_values(["position", "layer", "rank"])
        assert kept.reset_index(drop=True).equals(chosen)
        assert (frame[frame["rank"] < 0].weight == 0).all()

    def test_shows_itself(self, tiny_loaded: LoadedModel) -> None:
        routes = route(tiny_loaded, "the <b> river")
        assert repr(routes).endswith("8 experts, 3 per token>")
        shown = routes._repr_html_()
        assert "<b>" not in shown
        assert shown.count("<tr>") == 1 + len(routes.tokens)

    def test_says_what_a_text_is(self, tiny_loaded: LoadedModel) -> None:
        with pytest.raises(BadInputError, match="a text is a string; got list"):
            route(tiny_loaded, ["a"])  # type: ignore[arg-type]


class TestWhatIsShown:
    def test_fits_a_line(self, tiny_loaded: LoadedModel, tiny_run: AnalyzedRun) -> None:
        name = Path(tiny_loaded.spec.model).name
        assert repr(tiny_loaded).startswith(f"<LoadedModel {name}: ")
        assert repr(tiny_loaded).endswith("experts, 3 per token, float32 on cpu>")
        assert repr(tiny_loaded.anatomy).startswith("<Anatomy olmoe: ")
        assert repr(tiny_run).startswith(f"<AnalyzedRun {tiny_run.path}: ")
        assert (
            repr(CorpusSpec(path="a", on_error="skip")) == "CorpusSpec(path='a', on_error='skip')"
        )
        assert repr(as_text(TEXTS)) == "CorpusSpec(path='texts in memory', texts=3)"

    def test_of_a_model_an_analysis_and_a_steering_is_escaped_too(
        self, tiny_loaded: LoadedModel, tiny_run: AnalyzedRun
    ) -> None:
        hf = tiny_loaded.model
        model = wrap_model(hf, tiny_loaded.tokenizer, "<i>mine</i>")
        steering = steer(model, "the <b> river", mask("L1E0"), generate=0, controls=0)
        for shown in (
            model._repr_html_(),
            moescope.Analysis(tiny_run, Path("r.html"))._repr_html_(),
            steering._repr_html_(),
        ):
            assert shown.startswith("<p>&lt;")
            assert "<i>" not in shown
            assert "<b>" not in shown
        assert model.weights_hash[:12] in model._repr_html_()
        assert "KL" in steering._repr_html_()

    def test_is_escaped_in_a_notebook(self, tiny_loaded: LoadedModel, tmp_path: Path) -> None:
        run = open_run(trace(tiny_loaded, TEXTS, tmp_path / "<b>&", SHORT))
        moescope.build_report(run)
        shown = run._repr_html_()
        assert "<b>&" not in shown
        assert "&lt;b&gt;&amp;" in shown
        assert "%3Cb%3E%26/report.html" in shown
        assert "domain_specialization" in shown


class TestNames:
    def test_each_is_one_thing_whatever_was_imported_before(self) -> None:
        for name in moescope.__all__:
            first = getattr(moescope, name)
            if name != "__version__":
                importlib.import_module(moescope._WHERE[name])
                assert getattr(moescope, name) is first
                assert not inspect.ismodule(first), name

    def test_of_errors_all_come_from_one(self) -> None:
        assert issubclass(BadInputError, MoescopeError)

    def test_need_no_torch_to_be_listed(self) -> None:
        code = (
            "import json, sys, moescope; dir(moescope); print(json.dumps([m for m in sys.modules]))"
        )
        made = subprocess.run(
            [sys.executable, "-c", f"import json; {code}"],
            capture_output=True,
            text=True,
            check=True,
        )
        assert not {"torch", "transformers", "pandas"} & set(json.loads(made.stdout))
