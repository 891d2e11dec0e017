"""Whole profiles of a run: the tables' numbers, what is kept, what is absent, planted truth."""

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from tests.support.saved import save_tiny, write_corpus

from moescope.axes import ExpertRef
from moescope.corpus import CorpusSpec
from moescope.errors import BadInputError, ModelError, RunError
from moescope.metrics.runs import AnalyzedRun, open_run
from moescope.models import LoadedModel, ModelSpec, load_model
from moescope.profiles import profile as profile_module
from moescope.profiles.columns import COLUMNS
from moescope.profiles.facts import Absent, Profiles
from moescope.profiles.profile import (
    ProfileOptions,
    profile_all,
    profile_expert,
    profile_experts,
    write_profiles,
)
from moescope.run.options import TraceOptions
from moescope.trace import trace

NO_MODEL = ProfileOptions(use_model=False, pipeline=None)
MODEL_PARTS = ("contribution", "contexts", "pushes", "similar", "weights")


@pytest.fixture(scope="module")
def run(tiny_loaded: LoadedModel, tmp_path_factory: pytest.TempPathFactory) -> AnalyzedRun:
    """A run long enough for every part of a profile."""
    corpus = write_corpus(
        tmp_path_factory.mktemp("profile") / "texts.jsonl", documents_per_domain=30, words=40
    )
    folder = tmp_path_factory.mktemp("profile") / "run"
    trace(tiny_loaded, CorpusSpec(path=str(corpus)), folder, TraceOptions(context=64))
    return open_run(folder)


@pytest.fixture(scope="module")
def options() -> ProfileOptions:
    return ProfileOptions(pipeline=None)


@pytest.fixture(scope="module")
def profiles(run: AnalyzedRun, options: ProfileOptions, tiny_loaded: LoadedModel) -> Profiles:
    return profile_all(run, options, model=tiny_loaded)


def test_every_expert_has_one_in_order(run: AnalyzedRun, profiles: Profiles) -> None:
    assert [str(p.expert) for p in profiles] == [f"L{n}E{e}" for n in range(4) for e in range(8)]


def test_load_and_domains_are_those_of_the_tables(run: AnalyzedRun, profiles: Profiles) -> None:
    load = run.table("load").to_pandas().set_index(["layer", "expert", "domain"])
    special = run.table("domain_specialization").to_pandas()
    special = special.set_index(["layer", "expert", "domain"])
    for p in profiles:
        at = load.loc[(p.expert.layer_idx, p.expert.expert, "all")]
        assert (p.load.count, p.load.tokens) == (at["count"], at["tokens"])
        assert p.load.rate == pytest.approx(at["activation_rate"])
        assert (p.load.rate_low, p.load.rate_high) == pytest.approx((at.ci_low, at.ci_high))
        assert not isinstance(p.domains, Absent)
        assert sum(d.count for d in p.domains) == p.load.count
        assert sum(d.of_expert for d in p.domains) == pytest.approx(1.0)
        for d in p.domains:
            row = special.loc[(p.expert.layer_idx, p.expert.expert, d.domain)]
            assert (d.lift, d.q, d.others) == pytest.approx(
                (row.lift_over_others, row.q, row.others)
            )
            own = load.loc[(p.expert.layer_idx, p.expert.expert, d.domain)]
            assert d.gate_mass == pytest.approx(own.gate_mass)
            assert d.gate_low <= d.gate_mass <= d.gate_high  # the sample is the whole text here
            assert d.gate_low < d.gate_high


def test_tokens_in_are_counted_from_the_sample(run: AnalyzedRun, profiles: Profiles) -> None:
    tokens = run.tokens()
    assert tokens is not None
    for p in profiles:
        assert not isinstance(p.tokens_in, Absent)
        served = (tokens.ids[p.expert.layer_idx] == p.expert.expert).any(1)
        assert p.tokens_in.assignments == served.sum()
        for row in p.tokens_in.rows:
            mine = served & (tokens.token_id == row.token_id)
            assert row.count == mine.sum() >= p.tokens_in.min_count
            assert row.share == pytest.approx(mine.sum() / served.sum())
            assert row.of_token == pytest.approx(
                mine.sum() / (tokens.token_id == row.token_id).sum()
            )
            assert row.documents == np.unique(tokens.doc[mine]).size
            assert row.token == run.token_text(row.token_id)


def test_partners_are_counted_over_all_pairs(run: AnalyzedRun, profiles: Profiles) -> None:
    tokens = run.tokens()
    assert tokens is not None
    size = tokens.doc.size
    seen = 0
    for p in profiles:
        mine = (tokens.ids[p.expert.layer_idx] == p.expert.expert).any(1)
        for part in (p.previous, p.coactivated, p.following):
            for row in [] if isinstance(part, Absent) else part.rows:
                ref = ExpertRef.parse(row.expert)
                theirs = (tokens.ids[ref.layer_idx] == ref.expert).any(1)
                both = int((mine & theirs).sum())
                assert row.count == both
                assert row.given == pytest.approx(both / mine.sum())
                assert row.lift == pytest.approx(both * size / (mine.sum() * theirs.sum()))
                assert row.low <= row.lift <= row.high
                assert row.low < row.high
                seen += 1
    assert seen > 100
    assert isinstance(profiles[0].previous, Absent)
    assert isinstance(profiles[-1].following, Absent)


def test_intervals_of_domains_that_were_sampled_unevenly_are_of_the_runs_mix(
    tiny_loaded: LoadedModel, tmp_path: Path
) -> None:
    """domain0 has ten times the text but the same sample; the run's lift lies in the interval."""
    corpus = tmp_path / "texts.jsonl"
    write_corpus(corpus, documents_per_domain=200, domains=2, words=25)
    lines = corpus.read_text().splitlines()
    corpus.write_text("\n".join([*lines[:200], *lines[200:220]]))
    options = TraceOptions(context=64, sample_tokens=1500)
    trace(tiny_loaded, CorpusSpec(path=str(corpus)), tmp_path / "run", options)
    run = open_run(tmp_path / "run")
    tokens = run.tokens()
    assert tokens is not None
    inside, moved = [], []
    for p in profile_all(run, NO_MODEL):
        mine = (tokens.ids[p.expert.layer_idx] == p.expert.expert).any(1)
        for row in getattr(p.coactivated, "rows", []):
            theirs = (tokens.ids[p.expert.layer_idx] == ExpertRef.parse(row.expert).expert).any(1)
            unweighted = (mine & theirs).mean() / (mine.mean() * theirs.mean())
            moved.append(abs(unweighted / row.lift - 1))
            inside.append(row.low <= row.lift <= row.high)
    assert len(inside) > 30
    assert np.mean(inside) > 0.9
    assert np.max(moved) > 0.05  # so it mattered which mix the interval is of


def test_what_was_measured_is_read_back_without_the_model(
    run: AnalyzedRun,
    options: ProfileOptions,
    profiles: Profiles,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("the model was asked for")

    monkeypatch.setattr(profile_module, "load_model", refuse)
    monkeypatch.setattr(profile_module, "run_windows", refuse)
    again = profile_expert(open_run(run.path), "L2E5", ProfileOptions(pipeline=None))
    assert again.to_dict() == profiles[2 * 8 + 5].to_dict()


def test_another_budget_or_precision_is_another_measurement(
    run: AnalyzedRun, options: ProfileOptions, profiles: Profiles, tiny_loaded: LoadedModel
) -> None:
    few = profile_expert(
        run, "L1E1", ProfileOptions(tokens_per_domain=300, pipeline=None), model=tiny_loaded
    )
    assert few.source["measured"]["settings"]["tokens_per_domain"] == 300
    assert max(few.source["measured"]["text"]["tokens"]) < 450
    kept = {p.name for p in (run.path / "profiles").glob("measured-*.json")}
    assert len(kept) >= 2
    assert profile_expert(run, "L1E1", options).to_dict() == profiles[9].to_dict()


@pytest.mark.parametrize("suffix", [".json", ".safetensors", "-lens.parquet", "-contexts.parquet"])
def test_a_measurement_that_was_damaged_is_made_again(
    run: AnalyzedRun, options: ProfileOptions, profiles: Profiles, suffix: str
) -> None:
    for path in (run.path / "profiles").glob(f"measured-*{suffix}"):
        path.write_bytes(b"half of a fi")
    assert profile_expert(run, "L3E3", options).to_dict() == profiles[27].to_dict()


def test_without_the_model_its_parts_are_absent_and_say_so(
    run: AnalyzedRun, profiles: Profiles
) -> None:
    made = profile_all(run, NO_MODEL)
    for p, whole in zip(made, profiles, strict=True):
        for part in MODEL_PARTS:
            assert getattr(p, part) == Absent("made without the model")
            assert not isinstance(getattr(whole, part), Absent)
        assert p.load == whole.load
        assert p.tokens_in == whole.tokens_in
        assert "pushes towards" not in p.summary


def test_a_run_that_kept_sums_only_says_what_that_costs(
    tiny_loaded: LoadedModel, tiny_corpus: Path, tmp_path: Path
) -> None:
    chosen = TraceOptions(context=40, keep="aggregates", predictions=False)
    trace(tiny_loaded, CorpusSpec(path=str(tiny_corpus)), tmp_path / "run", chosen)
    made = profile_all(
        open_run(tmp_path / "run"), ProfileOptions(pipeline="en_core_web_sm"), model=tiny_loaded
    )
    p = made[5].to_dict()
    assert p["load"]["gate_low"] is None
    assert "aggregates only" in p["parts_of_speech"]["absent"]
    assert p["tokens_in"]["overlap"] is None
    assert all(r["documents"] is None for r in p["tokens_in"]["rows"])
    assert all(r["low"] is None for r in p["coactivated"]["rows"])
    assert p["contribution"]["mean"] > 0  # the model still gives its part


def test_text_of_one_domain_is_profiled_but_domains_are_not_compared(
    tiny_loaded: LoadedModel, tmp_path: Path
) -> None:
    line = {"text": "the river boils for tea and old stars", "domain": "only"}
    text = tmp_path / "texts.jsonl"
    text.write_text("\n".join(map(json.dumps, [line] * 60)))
    trace(tiny_loaded, CorpusSpec(path=str(text)), tmp_path / "run", TraceOptions(context=40))
    made = profile_all(open_run(tmp_path / "run"), ProfileOptions(pipeline=None), model=tiny_loaded)
    busy = max(made, key=lambda p: p.load.count)
    assert busy.summary.startswith(f"{busy.expert}: domains were not compared")
    assert not isinstance(busy.domains, Absent)
    assert [d.domain for d in busy.domains] == ["only"]
    assert np.isnan(busy.domains[0].lift)


def test_json_holds_no_nan_and_every_expert_has_a_file(
    run: AnalyzedRun, profiles: Profiles
) -> None:
    folder = write_profiles(run, profiles, index=True)
    index = json.loads((folder / "index.json").read_text(encoding="utf-8"))
    assert [e["expert"] for e in index] == [str(p.expert) for p in profiles]
    for entry, p in zip(index, profiles, strict=True):
        text = (folder / entry["file"]).read_text(encoding="utf-8")
        assert json.loads(text) == json.loads(json.dumps(p.to_dict()))
        assert not re.search(r"\b(?:NaN|Infinity)\b", text)
        assert entry["summary"] == p.summary
    assert not list(folder.glob("*.partial"))


class TestRefusals:
    def test_an_expert_that_is_not_there(self, run: AnalyzedRun) -> None:
        with pytest.raises(BadInputError, match=r"layer 2 of .* has experts E0 to E7"):
            profile_expert(run, "L2E8", NO_MODEL)
        with pytest.raises(BadInputError, match="its MoE layers are 0-3"):
            profile_expert(run, "L9E0", NO_MODEL)
        with pytest.raises(BadInputError, match="names no expert"):
            profile_experts(run, ["five"], NO_MODEL)

    def test_a_model_that_is_gone(self, tiny_run: AnalyzedRun) -> None:
        spec = ModelSpec("./not-here")
        with pytest.raises(ModelError, match=r"`model` .* `no_model`"):
            profile_expert(tiny_run, "L1E0", ProfileOptions(pipeline=None), model=spec)

    def test_another_model(self, tiny_run: AnalyzedRun, tmp_path: Path) -> None:
        other = load_model(ModelSpec(str(save_tiny("olmoe", tmp_path / "other", seed=7))))
        with pytest.raises(RunError, match="a run of another model"):
            profile_expert(tiny_run, "L1E0", ProfileOptions(pipeline=None), model=other)

    def test_a_budget_of_nothing(self, tiny_run: AnalyzedRun, tiny_loaded: LoadedModel) -> None:
        with pytest.raises(BadInputError, match="must be 1 or more, got 0"):
            profile_expert(tiny_run, "L1E0", ProfileOptions(tokens_per_domain=0), model=tiny_loaded)

    def test_a_corpus_that_has_changed(self, tiny_loaded: LoadedModel, tmp_path: Path) -> None:
        corpus = write_corpus(tmp_path / "texts.jsonl")
        trace(tiny_loaded, CorpusSpec(path=str(corpus)), tmp_path / "run", TraceOptions(context=40))
        write_corpus(corpus, seed=5)
        with pytest.raises(RunError, match="`no_model`"):
            profile_expert(open_run(tmp_path / "run"), "L1E0", model=tiny_loaded)


@pytest.fixture(scope="module")
def planted(tmp_path_factory: pytest.TempPathFactory) -> tuple[AnalyzedRun, LoadedModel, int]:
    """Layer 0 sends "tea", and nothing else, to expert 5; "tea" is in domain1 only.

    Expert 5 of layer 3 writes the direction of the word "stars" into the stream.
    """
    folder = save_tiny("olmoe", tmp_path_factory.mktemp("planted") / "model")
    loaded = load_model(ModelSpec(str(folder)))
    model: Any = loaded.model
    (word,) = loaded.tokenizer("tea")["input_ids"][1:]
    (stars,) = loaded.tokenizer("stars")["input_ids"][1:][-1:]
    tea, rest = torch.linalg.qr(torch.randn(32, 2, generator=torch.manual_seed(3)))[0].T
    with torch.no_grad():
        embedding = model.get_input_embeddings().weight
        router = model.model.layers[0].mlp.gate.weight
        for matrix in (embedding, router):
            for direction in (tea, rest):
                matrix -= (matrix @ direction)[:, None] * direction
        embedding += 4.0 * rest
        embedding[word] += 4.0 * (tea - rest)
        router[5] = 6.0 * (tea - rest)
        model.model.layers[0].self_attn.o_proj.weight.zero_()
        head = model.lm_head.weight
        target = head[stars] / head[stars].norm()
        down = model.model.layers[3].mlp.experts.down_proj
        gate_up = model.model.layers[3].mlp.experts.gate_up_proj
        half = gate_up.shape[1] // 2
        gate_up[5, half:] = gate_up[5, :half]  # SiLU(z)·z is never negative
        down[5] = (target[:, None] * 4.0).expand_as(down[5])
    model.save_pretrained(folder)
    corpus = write_corpus(
        tmp_path_factory.mktemp("planted") / "texts.jsonl", documents_per_domain=40, words=40
    )
    lines = [
        line.replace('"text": "', '"text": "tea tea tea tea tea tea ')
        if '"domain1"' in line
        else re.sub(r"\btea\b", "old", line)
        for line in corpus.read_text().splitlines()
    ]
    corpus.write_text("\n".join(lines))
    loaded = load_model(ModelSpec(str(folder)))
    out = tmp_path_factory.mktemp("planted") / "run"
    trace(loaded, CorpusSpec(path=str(corpus)), out, TraceOptions(context=128))
    return open_run(out), loaded, stars


Planted = tuple[AnalyzedRun, LoadedModel, int]


def test_a_planted_token_expert_gets_the_right_sentence(planted: Planted) -> None:
    run, loaded, _ = planted
    p = profile_expert(run, "L0E5", ProfileOptions(pipeline=None), model=loaded)
    assert p.role.kind == "token expert"
    assert p.summary.startswith("L0E5 is a token expert: ")
    assert f"% of its assignments are ‘{p.role.about}’" in p.summary
    assert "tea" in str(p.role.about)
    assert not isinstance(p.domains, Absent)
    found = {d.domain: d for d in p.domains}["domain1"]
    assert found.q < 0.05
    assert found.of_expert > 0.99
    assert not isinstance(p.contexts, Absent)
    assert all("tea" in row["token"] for row in p.contexts.rows[:1])


def test_a_planted_domain_expert_gets_the_right_sentence(planted: Planted) -> None:
    """Without the flag for tokens, the same expert is one of its domain."""
    run, _, _ = planted
    made = profile_expert(run, "L0E5", NO_MODEL)
    from moescope.profiles.summary import role_of

    role = role_of(made, [])
    assert (role.kind, role.about) == ("domain", "domain1")


def test_a_planted_push_is_seen(planted: Planted) -> None:
    run, loaded, stars = planted
    p = profile_expert(run, "L3E5", ProfileOptions(pipeline=None), model=loaded)
    assert not isinstance(p.pushes, Absent)
    assert p.pushes.promoted[0].token_id == stars
    assert p.pushes.promoted[0].half_a > 0 < p.pushes.promoted[0].half_b
    assert p.pushes.agreement > 0.9
    assert "it pushes towards" in p.summary


def test_where_domains_are_only_labels_few_experts_are_called_theirs(
    tiny_loaded: LoadedModel, tmp_path: Path
) -> None:
    """Every claim is false here. Stated: in at most 5 % of runs, so in fewer of the experts."""
    claimed, runs_with_any = [], 0
    for seed in range(15):
        corpus = tmp_path / f"{seed}.jsonl"
        write_corpus(corpus, documents_per_domain=24, domains=1, seed=seed)
        lines = corpus.read_text().splitlines()
        labels = np.random.default_rng(seed).permutation(np.arange(len(lines)) % 3)
        corpus.write_text(
            "\n".join(
                line.replace('"domain0"', f'"domain{label}"')
                for line, label in zip(lines, labels, strict=True)
            )
        )
        out = tmp_path / f"run{seed}"
        chosen = TraceOptions(context=128, seed=seed, keep="aggregates", predictions=False)
        trace(tiny_loaded, CorpusSpec(path=str(corpus)), out, chosen)
        kinds = [p.role.kind for p in profile_all(open_run(out), NO_MODEL)]
        assert kinds.count("none") > 25
        claimed.append(np.mean([k in ("domain", "avoids") for k in kinds]))
        runs_with_any += bool(claimed[-1])
    assert np.mean(claimed) <= 0.05
    assert runs_with_any <= 3  # 0.75 expected of 15; P(≥ 4 | 5 %) is below 0.6 %


def test_the_tables_are_written_and_every_column_has_a_meaning(
    run: AnalyzedRun, profiles: Profiles
) -> None:
    folder = write_profiles(run, profiles, index=True)
    for name, columns in COLUMNS.items():
        table = pq.read_table(folder / f"{name}.parquet")
        meant = [column for names in columns for column in names.split()]
        assert table.column_names == ["layer", "expert", *meant]
        assert all(meaning for _, meaning in columns.values())
    experts = pq.read_table(folder / "experts.parquet").to_pandas().set_index("name")
    kept = json.loads((folder / "L2E5.json").read_text(encoding="utf-8"))
    assert experts.summary["L2E5"] == kept["summary"]
    assert experts.contribution_mean["L2E5"] == pytest.approx(kept["contribution"]["mean"])
    pushes = pq.read_table(folder / "pushes.parquet").to_pandas()
    first = pushes[(pushes.layer == 2) & (pushes.expert == 5) & (pushes.side == "promoted")]
    assert first.token.tolist() == [r["token"] for r in kept["pushes"]["promoted"]]


def test_some_experts_come_in_the_order_asked_for(run: AnalyzedRun, profiles: Profiles) -> None:
    made = profile_experts(run, ["L3E1", "L0E2", "L3E0", "L0E2"], NO_MODEL)
    assert [str(p.expert) for p in made] == ["L3E1", "L0E2", "L3E0"]
    whole = {str(p.expert): p for p in profiles}
    for p in [*made, *made[1:2]]:
        assert (p.load, p.domains[0].tokens) == (
            whole[str(p.expert)].load,
            whole[str(p.expert)].domains[0].tokens,
        )
        assert p.tokens_in == whole[str(p.expert)].tokens_in
        assert p.following == whole[str(p.expert)].following
    assert len(profile_experts(run, [], NO_MODEL)) == 0
