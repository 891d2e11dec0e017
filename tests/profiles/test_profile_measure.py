"""One pass with the model against plain loops: contributions, outputs, likeness, pushes."""

from typing import Any

import numpy as np
import pytest
import torch
from tests.support.replay import replay
from tests.support.saved import save_tiny, write_corpus

from moescope.corpus import CorpusSpec
from moescope.errors import CorpusError, ModelError
from moescope.measure.windows import TextWindow, choose_windows
from moescope.models import LoadedModel, ModelSpec, load_model
from moescope.models.expert_calls import ExpertInputs, ExpertLayer
from moescope.profiles import gather as gather_module
from moescope.profiles import measure as measure_module
from moescope.profiles.cells import Cells, half_of_documents
from moescope.profiles.lens import FinalScales, find_lens
from moescope.profiles.measure import Measured, measure
from moescope.progress import Progress
from moescope.run.aggregates import AggregateShape
from moescope.run.options import TraceOptions

FAMILIES = ("olmoe", "llama4_text", "jetmoe", "longcat_flash", "granitemoe")
DOMAINS = ["domain0", "domain1", "domain2"]


def cells_of(loaded: LoadedModel) -> Cells:
    layers = loaded.anatomy.layers
    return Cells.of(
        AggregateShape(
            layers=tuple(n.layer_idx for n in layers),
            num_experts=tuple(n.num_experts for n in layers),
            top_k=tuple(n.top_k for n in layers),
        )
    )


def setting(folder: Any, model_type: str) -> tuple[LoadedModel, list[TextWindow], Cells]:
    loaded = load_model(ModelSpec(str(save_tiny(model_type, folder / model_type))))
    corpus = write_corpus(folder / "texts.jsonl", documents_per_domain=3, words=8)
    windows = choose_windows(loaded, CorpusSpec(path=str(corpus)), options=TraceOptions(context=40))
    return loaded, windows, cells_of(loaded)


class Plain:
    """Every token on its own, every expert from its weights: slow, and nothing shared."""

    def __init__(self, loaded: LoadedModel, windows: list[TextWindow], cells: Cells) -> None:
        self.rows: list[tuple[int, int, int, float, np.ndarray, bool, float]] = []
        self.peak = np.zeros(cells.total)
        model: Any = loaded.model
        lens = find_lens(loaded, loaded.anatomy.layers)
        docs = sorted({(w.domain, w.doc) for w in windows})
        half = half_of_documents([d for _, d in docs], [DOMAINS.index(c) for c, _ in docs])
        place = 0
        for w in windows:
            ids = torch.as_tensor(w.token_ids, dtype=torch.long)[None]
            with (
                torch.no_grad(),
                ExpertInputs(model, loaded.anatomy.layers) as inputs,
                FinalScales(model, lens) as scales,
            ):
                model.base_model(input_ids=ids, use_cache=False)
                taken, scale = inputs.take(), scales.take()
            for layer, at in zip(loaded.anatomy.layers, cells.layers, strict=True):
                experts = model.get_submodule(layer.site.experts)
                hidden, routing = taken[layer.layer_idx]
                for t in range(len(w.token_ids)):
                    for e, weight in zip(
                        routing.topk_ids[t].tolist(), routing.topk_weights[t].tolist(), strict=True
                    ):
                        one = torch.tensor([[e]])
                        with torch.no_grad():
                            added = replay(
                                experts, hidden[t : t + 1], one, torch.tensor([[weight]])
                            )
                            plain = replay(experts, hidden[t : t + 1], one, torch.ones(1, 1))
                        cell = cells.offsets[at.slot] + e
                        self.peak[cell] = max(self.peak[cell], float(plain.abs().max()))
                        self.rows.append((
                            cell, place + t, int(half[docs.index((w.domain, w.doc))]), weight,
                            added[0].double().numpy(), bool(w.counted[t]), float(scale[t]),
                            DOMAINS.index(w.domain), float(plain.norm()), w.doc,
                        ))  # fmt: skip
            place += len(w.token_ids)
        self.counted = [r for r in self.rows if r[5]]

    def of(self, cell: int) -> list[tuple]:
        return [r for r in self.counted if r[0] == cell]


@pytest.fixture(scope="module", params=FAMILIES)
def both(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Measured, Plain, Cells]:
    folder = tmp_path_factory.mktemp("measure")
    loaded, windows, cells = setting(folder, request.param)
    return measure(loaded, windows, cells, DOMAINS), Plain(loaded, windows, cells), cells


def test_contributions_are_those_of_replayed_experts(both: tuple[Measured, Plain, Cells]) -> None:
    made, plain, cells = both
    figures = made.figures
    assert figures["count"].sum() == len(plain.counted) > 300
    for cell in range(cells.total):
        rows = plain.of(cell)
        assert figures["count"][cell] == len(rows)
        assert figures["documents"][cell] == len({r[9] for r in rows})
        if not rows:
            assert np.isnan(figures["contribution"][cell])
            continue
        lengths = np.asarray([np.linalg.norm(r[4]) for r in rows])
        assert figures["contribution"][cell] == pytest.approx(lengths.mean(), rel=1e-4, abs=1e-7)
        assert figures["activation"][cell] == pytest.approx(
            np.mean([r[8] for r in rows]), rel=1e-4, abs=1e-7
        )
        assert figures["weight"][cell] == pytest.approx(np.mean([r[3] for r in rows]), rel=1e-4)
        mean = np.mean([r[4] for r in rows], axis=0)
        assert np.allclose(figures["output"][cell], mean, atol=1e-5)
        for d in range(3):
            own = [np.linalg.norm(r[4]) for r in rows if r[7] == d]
            assert figures["by_domain"][d, cell] == len(own)
            if own:
                value = figures["contribution_by_domain"][d, cell]
                assert value == pytest.approx(np.mean(own), rel=1e-4, abs=1e-7)


def test_shares_of_a_layer_add_up(both: tuple[Measured, Plain, Cells]) -> None:
    made, _, cells = both
    for layer in cells.layers:
        cut = cells.of_layer(layer)
        for name in ("contribution_share", "activation_share"):
            assert np.nansum(made.figures[name][cut]) == pytest.approx(1.0)


def test_peaks_include_the_start_token(both: tuple[Measured, Plain, Cells]) -> None:
    made, plain, _ = both
    assert np.allclose(made.figures["peak"], plain.peak, rtol=1e-4, atol=1e-6)
    assert (made.figures["counted_peak"] <= made.figures["peak"]).all()
    assert len(plain.rows) > len(plain.counted)


def test_pushes_are_sums_with_each_tokens_own_scale(both: tuple[Measured, Plain, Cells]) -> None:
    made, plain, cells = both
    assert made.lens is not None
    for layer in cells.layers:
        factor = made.lens.paths[layer.layer_idx]
        pushes = made.pushes[layer.slot]
        for e in range(layer.num_experts):
            for h in (0, 1):
                rows = [r for r in plain.of(cells.offsets[layer.slot] + e) if r[2] == h]
                assert pushes.counts[h, e] == len(rows)
                total = sum((r[4] * r[6] * factor for r in rows), np.zeros(32))
                got = pushes.sums[h, e].double().numpy()
                assert np.allclose(got, total, atol=1e-4 * max(1.0, np.abs(total).max()))


def test_the_highest_contributions_are_kept_in_order(both: tuple[Measured, Plain, Cells]) -> None:
    made, plain, cells = both
    for layer in cells.layers:
        found = made.candidates[layer.slot]
        for e in range(layer.num_experts):
            mine = found.expert == e
            rows = plain.of(cells.offsets[layer.slot] + e)
            lengths = sorted((float(np.linalg.norm(r[4])) for r in rows), reverse=True)
            kept = found.contribution[mine]
            assert np.allclose(kept, lengths[: gather_module.CANDIDATES], rtol=1e-4, atol=1e-7)
            by_place = {r[1]: float(np.linalg.norm(r[4])) for r in rows}
            for place, value in zip(found.place[mine].tolist(), kept.tolist(), strict=True):
                assert by_place[place] == pytest.approx(value, rel=1e-4, abs=1e-7)


@pytest.fixture(scope="module")
def olmoe(tmp_path_factory: pytest.TempPathFactory) -> tuple[LoadedModel, list[TextWindow], Cells]:
    return setting(tmp_path_factory.mktemp("olmoe"), "olmoe")


Setting = tuple[LoadedModel, list[TextWindow], Cells]


def test_batches_of_another_size_change_nothing(
    olmoe: Setting, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded, windows, cells = olmoe
    whole = measure(loaded, windows, cells, DOMAINS)
    monkeypatch.setattr(measure_module, "fitting_batch", lambda _: 512)
    parts = measure(loaded, windows, cells, DOMAINS)
    for name, values in whole.figures.items():
        if not name.startswith(("cosine", "nearest")):  # these are of another choice of tokens
            assert np.allclose(values, parts.figures[name], rtol=1e-4, atol=1e-5, equal_nan=True)
    for a, b in zip(whole.candidates, parts.candidates, strict=True):
        assert np.array_equal(np.sort(a.place), np.sort(b.place))


def test_likeness_is_the_mean_cosine_on_the_same_inputs(
    olmoe: Setting, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded, windows, cells = olmoe
    monkeypatch.setattr(measure_module, "COMPARED_TOKENS", 10**9)  # every token
    made = measure(loaded, windows, cells, DOMAINS)
    outputs: dict[int, list[torch.Tensor]] = {}
    for w in windows:
        with torch.no_grad(), ExpertInputs(loaded.model, loaded.anatomy.layers) as inputs:
            ids = torch.as_tensor(w.token_ids, dtype=torch.long)[None]
            loaded.model.base_model(input_ids=ids, use_cache=False)  # type: ignore[operator]
            taken = inputs.take()
        for layer in loaded.anatomy.layers:
            given = taken[layer.layer_idx].hidden[torch.as_tensor(w.counted)]
            run = ExpertLayer(loaded.model, layer)
            outputs.setdefault(layer.layer_idx, []).append(
                torch.stack([run(e, given) for e in range(8)])
            )
    for layer in cells.layers:
        rows = torch.cat(outputs[layer.layer_idx], dim=1)
        unit = rows / rows.norm(dim=-1, keepdim=True)
        cosine = torch.einsum("itd,jtd->ij", unit, unit).numpy() / rows.shape[1]
        np.fill_diagonal(cosine, -2)
        cut = cells.of_layer(layer)
        order = np.argsort(-cosine, axis=1)[:, :7]
        assert np.array_equal(made.figures["nearest"][cut, :7], order)
        expected = np.take_along_axis(cosine, order, 1)
        assert np.allclose(made.figures["cosine"][cut, :7], expected, atol=1e-5)
        assert (made.figures["nearest"][cut, 7] == -1).all()  # an expert is not like itself
        assert made.compared[layer.slot] == rows.shape[1]


def test_two_experts_that_are_the_same_are_each_others_nearest(olmoe: Setting) -> None:
    loaded, windows, cells = olmoe
    experts: Any = loaded.model.get_submodule(loaded.anatomy.layers[2].site.experts)
    before = {n: p.detach().clone() for n, p in experts.named_parameters()}
    try:
        with torch.no_grad():
            for p in experts.parameters():
                p[6] = p[1]
        made = measure(loaded, windows, cells, DOMAINS)
    finally:
        with torch.no_grad():
            for n, p in experts.named_parameters():
                p.copy_(before[n])
    a, b = cells.offsets[2] + 1, cells.offsets[2] + 6
    assert made.figures["nearest"][a, 0] == 6
    assert made.figures["nearest"][b, 0] == 1
    assert made.figures["cosine"][a, 0] == pytest.approx(1.0, abs=1e-5)
    assert made.figures["cosine_halves"][:, a, 0] == pytest.approx([1.0, 1.0], abs=1e-5)


def test_weight_norms_by_hand(olmoe: Setting) -> None:
    loaded, windows, cells = olmoe
    made = measure(loaded, windows[:2], cells, DOMAINS)
    experts: Any = loaded.model.get_submodule(loaded.anatomy.layers[0].site.experts)
    expected = [float(experts.down_proj[e].detach().pow(2).sum().sqrt()) for e in range(8)]
    assert made.norms["down_proj"][:8] == pytest.approx(expected, rel=1e-5)
    assert set(made.norms) == {"gate_up_proj", "down_proj", "router row"}


def test_weights_that_are_not_stacked_are_absent_with_the_reason(tmp_path: Any) -> None:
    loaded, windows, cells = setting(tmp_path, "dbrx")
    made = measure(loaded, windows[:2], cells, DOMAINS)
    assert set(made.norms) == {"router row"}
    assert "stacked" in made.absent["weights L0"]


def test_where_a_norm_follows_the_experts_there_is_no_lens(tmp_path: Any) -> None:
    loaded, windows, cells = setting(tmp_path, "flex_olmo")
    made = measure(loaded, windows, cells, DOMAINS)
    assert not made.pushes
    assert "not simply added" in made.absent["lens L0"]
    assert np.isfinite(made.figures["contribution"]).any()


def test_single_outputs_that_do_not_add_up_are_refused(
    olmoe: Setting, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded, windows, cells = olmoe
    plain = ExpertLayer.__call__
    monkeypatch.setattr(ExpertLayer, "__call__", lambda self, e, x: plain(self, (e + 1) % 8, x))
    with pytest.raises(ModelError, match="do not add up"):
        measure(loaded, windows, cells, DOMAINS)


def test_no_text_is_refused(olmoe: Setting) -> None:
    loaded, _, cells = olmoe
    with pytest.raises(CorpusError, match="no text"):
        measure(loaded, [], cells, DOMAINS)


def test_progress_ends_at_the_number_of_tokens(olmoe: Setting) -> None:
    loaded, windows, cells = olmoe
    told: list[Progress] = []
    made = measure(loaded, windows, cells, DOMAINS, on_progress=told.append)
    total = sum(w.num_tokens for w in windows)
    assert told[-1][1:4] == (total, total, "tokens")
    assert made.text.tokens.sum() == total
    assert made.text.documents.tolist() == [3, 3, 3]
