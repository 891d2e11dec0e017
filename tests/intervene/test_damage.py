"""Damage is what brute force says, is found where it was planted, and not where it was not."""

import copy
import dataclasses
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.stats import binom
from tests.support.brute_damage import by_hand, choices, loaded_of, some_windows
from tests.support.planted import exchangeable, planted
from tests.support.tiny import MOE_MODEL_TYPES

from moescope.axes import ExpertRef
from moescope.errors import BadInputError, ModelError, RunError
from moescope.intervene import mask, measure_damage, scale, zero
from moescope.intervene.answers import damage_answers, damage_notes
from moescope.intervene.damage.edits import damage_edit
from moescope.measure.journal import Journal
from moescope.measure.scoring import PlainScores, compare
from moescope.measure.trials import Trial, TrialRunner
from moescope.measure.windows import TextWindow
from moescope.metrics.intervals import (
    contrast,
    document_means,
    mean_interval,
    minimum_detectable,
)
from moescope.models import LoadedModel
from moescope.models.anatomy import REFUSED
from moescope.models.edits import Edit
from moescope.progress import Progress

VARIED = (
    "olmoe", "mixtral", "deepseek_v3", "deepseek_v4", "gemma4_text", "gpt_oss", "granitemoe",
    "inkling_text", "inkling2_text", "jamba", "llama4_text", "zaya",
)  # fmt: skip
"""Layers of several streams, norms after the experts, convolutions after them, skip experts."""


def run(
    loaded: LoadedModel, windows: list[TextWindow], *edits: Edit, batch: int = 64
) -> TrialRunner:
    trials = [Trial(str(n), (edit,)) for n, edit in enumerate(edits)]
    runner = TrialRunner(
        loaded, windows, loaded.anatomy.layers, batch_tokens=batch, journal=Journal(None, {})
    )
    runner.measured = runner.run(trials)
    return runner


class TestBruteForce:
    @pytest.mark.parametrize(
        "kind",
        [
            *VARIED,
            *(
                pytest.param(t, marks=pytest.mark.slow)
                for t in MOE_MODEL_TYPES
                if t not in (*VARIED, *REFUSED, "jetmoe")  # which takes no edits at all
            ),
        ],
    )
    def test_every_architecture_agrees_with_whole_passes_by_hand(self, kind: str) -> None:
        """Whatever may be left out on a model, the sums are those of whole passes, window by
        window, without padding, in double precision."""
        loaded, windows = loaded_of(kind), some_windows()
        low, high = loaded.anatomy.layer_numbers[0], loaded.anatomy.layer_numbers[-1]
        edits = (
            zero(f"L{high}E1"), zero(f"L{low}E1"), zero([f"L{low}E1", f"L{high}E0"]),
            zero(f"L{low}E1", renormalize=True), scale([f"L{low}E1", f"L{low}E2"], 0.5),
        )  # fmt: skip
        measured = run(loaded, windows, *edits).measured
        for j, edit in enumerate(edits):
            expected = by_hand(loaded, windows, edit)
            assert np.abs(expected.ce_change).sum() > 0.01
            np.testing.assert_allclose(measured.ce_change[j], expected.ce_change, atol=5e-5)
            np.testing.assert_allclose(measured.kl[j], expected.kl, atol=5e-5)
            assert np.abs(measured.flips[j] - expected.flips).sum() <= 1  # a tie may fall anyhow
            np.testing.assert_allclose(measured.ce, expected.ce, atol=5e-4)
            assert measured.tokens.tolist() == expected.tokens.tolist()

    def test_masks_agree_too_though_they_reach_every_token(self) -> None:
        """Where weights are not normalised, a masked expert's share goes to all others."""
        loaded, windows = loaded_of("olmoe"), some_windows()
        edits = mask("L3E1"), mask("L1E1"), mask("L1E1", renormalize=False)
        measured = run(loaded, windows, *edits).measured
        for j, edit in enumerate(edits):
            expected = by_hand(loaded, windows, edit)
            np.testing.assert_allclose(measured.ce_change[j], expected.ce_change, atol=2e-5)
            np.testing.assert_allclose(measured.kl[j], expected.kl, atol=2e-5)
        saving = run(loaded, windows, edits[0]).measured.saving
        assert saving.windows == saving.windows_naive == 6
        assert saving.head_tokens == 81

    def test_double_precision_agrees_to_many_digits(self, tiny_loaded: LoadedModel) -> None:
        model = copy.deepcopy(tiny_loaded.model).double()
        model.set_experts_implementation("eager")  # the grouped product has no double precision
        loaded = dataclasses.replace(tiny_loaded, model=model, dtype="float64")
        measured = run(loaded, some_windows(), zero("L1E1"), zero("L3E1")).measured
        for j, name in enumerate(("L1E1", "L3E1")):
            expected = by_hand(loaded, some_windows(), zero(name))
            np.testing.assert_allclose(measured.ce_change[j], expected.ce_change, atol=1e-6)
            np.testing.assert_allclose(measured.kl[j], expected.kl, atol=1e-6)

    @pytest.mark.parametrize("batch", [1, 30, 1000])
    def test_batches_change_nothing(self, batch: int) -> None:
        loaded, windows = loaded_of("olmoe"), some_windows()
        measured = run(loaded, windows, zero("L1E1"), batch=batch).measured
        expected = by_hand(loaded, windows, zero("L1E1"))
        np.testing.assert_allclose(measured.ce_change[0], expected.ce_change, atol=2e-5)


class TestWhatIsLeftOut:
    @pytest.mark.parametrize("takes_off", [True, False])
    @pytest.mark.parametrize("skips", [True, False])
    @pytest.mark.parametrize("full", [True, False])
    def test_leaving_less_out_gives_the_same(
        self, takes_off: bool, skips: bool, full: bool
    ) -> None:
        """Each thing that is left out, switched off on its own and together."""
        loaded, windows = loaded_of("olmoe"), some_windows()
        edits = (zero("L1E1"), zero("L3E1"), scale(["L1E0", "L1E2"], 0.5), zero(["L1E1", "L3E0"]))
        runner = TrialRunner(
            loaded, windows, loaded.anatomy.layers, batch_tokens=64, journal=Journal(None, {})
        )
        runner.quick.takes_off, runner.quick.skips = takes_off, skips
        runner.quick.full = {1, 2, 3, 4} if full else set()
        measured = runner.run([Trial(str(n), (edit,)) for n, edit in enumerate(edits)])
        assert measured.saving.full_passes == full
        assert (runner.quick.takes_off, runner.quick.skips) == (takes_off, skips)
        if full:
            longest = measured.saving.windows * 21  # no window is padded beyond 21 tokens
            assert 0 < measured.saving.layer_tokens <= 4 * longest
        for j, edit in enumerate(edits):
            expected = by_hand(loaded, windows, edit)
            np.testing.assert_allclose(measured.ce_change[j], expected.ce_change, atol=2e-5)
            np.testing.assert_allclose(measured.kl[j], expected.kl, atol=2e-5)
            assert measured.flips[j].tolist() == expected.flips.tolist()

    def test_layers_below_the_edit_and_tokens_out_of_reach(self) -> None:
        """4 layers, the last edited: nothing is run but the norm and the head, and the head only
        at tokens that chose the expert."""
        loaded, windows = loaded_of("olmoe"), some_windows()
        runner = run(loaded, windows, zero("L3E1"), batch=1000)
        saving = runner.measured.saving
        assert saving.layer_tokens == 0
        assert 0 < saving.head_tokens < saving.head_tokens_naive / 2
        assert saving.layer_tokens_naive == 4 * 6 * 21  # 4 layers, 6 windows padded to 21
        assert saving.max_difference < 1e-4
        assert runner.measured.notes == []

    def test_several_layers_start_at_the_lowest(self) -> None:
        loaded, windows = loaded_of("olmoe"), some_windows()
        saving = run(loaded, windows, zero(["L1E1", "L3E1"]), batch=1000).measured.saving
        assert saving.layer_tokens == 3 * saving.windows * 21

    def test_a_window_that_never_chooses_the_expert_is_exactly_unchanged(self) -> None:
        made = planted(3)
        ref = made.carrier
        assert ref is not None
        measured = run(made.loaded, made.windows, zero([ref]), batch=100_000).measured
        chosen = [choices(made.loaded, w, layer=1)[:-1] == ref.expert for w in made.windows]
        served = np.array([c[1:].any() for c in chosen])  # BOS is not scored
        assert 0 < served.sum() < len(made.windows)
        assert (measured.ce_change[0][~served] == 0).all()
        assert (measured.ce_change[0][served] != 0).all()
        assert measured.saving.windows == served.sum()
        assert (measured.tokens == 23).all()  # but its tokens are in the denominator

    def test_what_does_not_hold_on_a_model_is_not_used_and_said(self) -> None:
        """Convolutions after the experts carry an edit to tokens that did not choose it."""
        loaded = loaded_of("inkling2_text")
        runner = run(loaded, some_windows(), zero(f"L{loaded.anatomy.layer_numbers[-1]}E1"))
        assert not runner.quick.skips
        assert "none were skipped" in " ".join(runner.measured.notes)
        assert runner.measured.saving.full_passes
        assert "full passes" in " ".join(runner.measured.notes)


class TestScoring:
    def test_by_hand(self) -> None:
        """Two tokens of vocabulary. p = (3/4, 1/4) becomes (1/4, 3/4), the truth is token 0:
        ΔCE = ln 3, KL = 3/4·ln 3 − 1/4·ln 3 = ½ ln 3."""
        plain = PlainScores(torch.tensor([[math.log(3.0), 0.0]]), torch.tensor([0]))
        made = compare(plain, torch.tensor([[0.0, math.log(3.0)]]))
        assert made.ce_change.tolist() == pytest.approx([math.log(3)])
        assert made.kl.tolist() == pytest.approx([math.log(3) / 2])
        assert made.flips.tolist() == [1.0]
        assert plain.ce.tolist() == pytest.approx([math.log(4 / 3)])

    def test_an_unchanged_token_has_exactly_nothing(self) -> None:
        logits = torch.randn(50, 300)
        made = compare(PlainScores(logits, torch.arange(50)), logits.clone())
        assert made.kl.abs().max() < 1e-12
        assert made.ce_change.abs().max() < 1e-12
        assert made.flips.sum() == 0

    def test_a_common_shift_of_all_logits_is_no_change(self) -> None:
        logits = torch.randn(20, 300)
        made = compare(PlainScores(logits, torch.arange(20)), logits + 3.0)
        assert made.kl.max() < 1e-6
        assert made.ce_change.abs().max() < 1e-6

    @pytest.mark.parametrize("size", [1e-4, 0.01, 1.0, 30.0, 300.0])
    def test_small_and_huge_changes_agree_with_double_precision(self, size: float) -> None:
        torch.manual_seed(0)
        before = 3 * torch.randn(400, 500)
        after = before + size * torch.randn(400, 500)
        target = torch.randint(0, 500, (400,))
        made = compare(PlainScores(before, target), after)
        p, q = (torch.log_softmax(z.double(), -1) for z in (before, after))
        kl = (p.exp() * (p - q)).sum(-1)
        ce = (p - q).gather(-1, target[:, None])[:, 0]
        assert (made.kl - kl).abs().max() < 2e-6 * max(1.0, size)
        assert (made.ce_change - ce).abs().max() < 2e-6 * max(1.0, size)
        assert made.flips.tolist() == (before.argmax(-1) != after.argmax(-1)).double().tolist()

    def test_some_tokens_of_many(self) -> None:
        before, after = torch.randn(30, 40), torch.randn(30, 40)
        plain, index = PlainScores(before, torch.arange(30)), torch.tensor([2, 3, 17])
        some, whole = compare(plain, after[index], index), compare(plain, after)
        assert torch.equal(some.kl, whole.kl[index])


class TestIntervals:
    def test_means_and_their_interval_are_those_of_the_rates(self) -> None:
        rng = np.random.default_rng(0)
        sums, tokens = rng.normal(size=(12, 3)), rng.integers(5, 60, 12)
        made = document_means(sums, tokens)
        assert made.mean == pytest.approx(sums.sum(0) / tokens.sum())
        known = mean_interval(sums, tokens)
        assert made.low == pytest.approx(known.low)
        assert made.high == pytest.approx(known.high)

    def test_equal_documents_have_the_standard_error_of_the_mean(self) -> None:
        """100 documents of 10 tokens, half of them changed by 10 nats, half by none: mean 0.5,
        standard error 0.5/√100 = 0.05, detectable 2.80 · 0.05 = 0.14."""
        sums = np.repeat([[0.0], [10.0]], 50, axis=0)
        made = document_means(sums, np.full(100, 10))
        assert made.mean[0] == 0.5
        assert made.se[0] == pytest.approx(0.05, rel=0.01)
        assert minimum_detectable(np.array([0.05]))[0] == pytest.approx(0.14008, abs=1e-5)

    def test_few_documents_have_a_mean_but_no_interval(self) -> None:
        made = document_means(np.ones((4, 1)), np.full(4, 2))
        assert made.mean.tolist() == [0.5]
        assert np.isnan([made.low[0], made.high[0], made.se[0]]).all()

    def test_the_ratio_of_two_sides_by_hand(self) -> None:
        """On target 6 nats on 10 tokens in every document, off target 2 on 10: ratio 3, difference
        0.4, and no document differs."""
        sums = np.array([[6.0]] * 5 + [[2.0]] * 5)
        on = np.arange(10) < 5
        made = contrast(sums, np.full(10, 10), on)
        for value in (made.ratio, made.ratio_low, made.ratio_high):
            assert value[0] == pytest.approx(3.0)
        assert made.difference[0] == made.low[0] == pytest.approx(0.4)

    def test_there_is_no_ratio_where_the_off_target_side_reaches_zero(self) -> None:
        off = [1.0, -1.0, 1.0, -1.0, 1.0, -0.9]
        sums = np.array([[6.0]] * 5 + [[v] for v in off])
        made = contrast(sums, np.full(11, 10), np.arange(11) < 5)
        assert np.isnan(made.ratio[0])
        assert made.difference[0] == pytest.approx(0.6 - sum(off) / 60)
        assert made.low[0] < made.difference[0] < made.high[0]


class TestPlanted:
    def test_the_carrier_of_a_domain_is_found(self) -> None:
        made = planted(0)
        damage = measure_damage(made.loaded, made.windows, [made.carrier], targets=["d0"])
        rows = {(r["scope"], r["domain"]): r for r in damage.plan_rows()}
        on, others = rows["domain", "d0"], [rows["domain", f"d{n}"] for n in (1, 2, 3)]
        assert on["ce_change_low"] > 0.1
        assert on["ce_change"] > on["ce_change_controls_max"]
        assert on["ce_change_p"] == pytest.approx(1 / (1 + damage.num_controls))
        assert on["ce_change"] > on["detectable"]
        for row in others:
            assert row["ce_change"] == pytest.approx(0, abs=0.01)
            assert row["ce_change_p_overlap"] > 0.05
        said = damage_answers(damage)
        begin = f"{made.carrier} matters more than random ones of like load on d0: with it chosen"
        assert said[0].startswith(begin) == (damage.chance[0] <= 0.05)
        assert f"none of {damage.num_controls} random plans does as much harm or more" in said[0]
        assert "Off target the change is not clearly above 0, so their ratio" in " ".join(said)
        assert damage.selectivity is not None
        assert damage.selectivity.difference_low > 0.1
        assert damage.selectivity.p == pytest.approx(1 / (1 + damage.num_controls))

    def test_masking_it_shows_the_same(self) -> None:
        made = planted(1)
        damage = measure_damage(made.loaded, made.windows, [made.carrier], edit="mask")
        row = next(r for r in damage.plan_rows() if r["domain"] == "d0")
        assert row["ce_change_low"] > 0.1
        assert row["ce_change"] > row["ce_change_controls_max"]

    def test_in_the_null_the_controls_are_left_as_often_as_is_said_and_no_more(self) -> None:
        """40 models whose experts are alike, a random expert each: above all 20 controls in 1 of
        21 cases; at most as many as an exact binomial bound (0.5 %) allows."""
        seeds, beyond, low_p = 40, 0, 0
        for seed in range(seeds):
            made = exchangeable(seed, documents=5, tokens=20)
            ref = ExpertRef(1, int(np.random.default_rng(seed).integers(32)))
            damage = measure_damage(
                made.loaded, made.windows, [ref], targets=["d0"], controls=20, match="size"
            )
            row = next(r for r in damage.plan_rows() if r["scope"] == "on-target")
            assert damage.num_controls == 20
            assert abs(row["ce_change"]) > 0 or row["load"] == 0
            beyond += row["ce_change"] > row["ce_change_controls_max"]
            assert damage.selectivity is not None
            low_p += damage.selectivity.p_overlap <= 0.05
        most = binom.isf(0.005, seeds, 1 / 21)
        assert beyond <= most
        assert low_p <= most


class TestTheTable:
    def test_rows_denominators_and_p_by_hand(self, tiny_loaded: LoadedModel) -> None:
        windows = some_windows()
        damage = measure_damage(
            tiny_loaded, windows, "L3E1", controls=7, targets=["dom1"], match="size"
        )
        table = damage.to_pandas()
        assert len(table) == 8 * 5  # plan and 7 controls; all, on, off, two domains
        plan = table[table.trial == "plan"].set_index("scope")
        expected = by_hand(tiny_loaded, windows, zero("L3E1"))
        assert plan.loc["all", "tokens"] == expected.tokens.sum() == 81
        mean = expected.ce_change.sum() / expected.tokens.sum()
        assert plan.loc["all", "ce_change"] == pytest.approx(mean, abs=1e-6)
        on = [w.domain == "dom1" for w in windows]
        mean = expected.flips[on].sum() / expected.tokens[on].sum()
        assert plan.loc["on-target", "flips"] == pytest.approx(mean)
        everywhere = table[table.scope == "all"]
        others = everywhere[everywhere.trial != "plan"].ce_change
        own = plan.loc["all", "ce_change"]
        assert plan.loc["all", "ce_change_p"] == (1 + (others >= own).sum()) / 8
        assert plan.loc["all", "ce_change_controls_max"] == others.max()
        assert sum(everywhere.load) == pytest.approx(1.0)  # 8 experts: the plan and 7 others

    def test_load_is_the_share_of_all_choices(self, tiny_loaded: LoadedModel) -> None:
        windows = some_windows()
        damage = measure_damage(tiny_loaded, windows, "L1E0,L1E3", controls=0)
        chosen = total = 0
        for w in windows:
            ids = choices(tiny_loaded, w, layer=1)[w.counted]
            chosen, total = chosen + np.isin(ids, [0, 3]).sum(), total + ids.size
        assert damage.plan_rows()[0]["load"] == pytest.approx(chosen / total)
        assert damage.prepared.layer_loads[1] == pytest.approx(chosen / total)

    def test_few_documents_are_named_and_have_no_interval(self, tiny_loaded: LoadedModel) -> None:
        damage = measure_damage(tiny_loaded, some_windows(), "L3E1", controls=7)
        row = next(r for r in damage.plan_rows() if r["domain"] == "dom0")
        assert row["documents"] == 3
        assert math.isnan(row["ce_change_low"])
        notes = " ".join(n.text for n in damage_notes(damage))
        assert "Fewer than 5 documents: dom0 (3), dom1 (3)" in notes
        assert "[no interval]" not in damage_answers(damage)[0]  # all six are enough

    def test_fewer_controls_than_wanted_are_said(self, tiny_loaded: LoadedModel) -> None:
        damage = measure_damage(tiny_loaded, some_windows(), "L3E1", controls=20, match="size")
        assert damage.num_controls == 7
        notes = " ".join(n.text for n in damage_notes(damage))
        assert "Only 7 different controls could be found, 20 were asked for" in notes
        assert "0.125" in notes

    def test_controls_of_another_load_are_not_used(self, tiny_loaded: LoadedModel) -> None:
        damage = measure_damage(tiny_loaded, some_windows(), "L3E1", controls=7)
        assert damage.prepared.controls is not None
        assert damage.prepared.controls.matched
        assert damage.num_controls < 7
        assert "1 different control of like load could be found, 7 were asked for" in " ".join(
            n.text for n in damage_notes(damage)
        )

    def test_without_controls_that_is_said_too(self, tiny_loaded: LoadedModel) -> None:
        damage = measure_damage(tiny_loaded, some_windows(), "L3E*", controls=0)
        assert damage.num_controls == 0
        assert damage.plan_rows()[0]["ce_change_p"] is None
        assert "No controls" in damage_notes(damage)[0].text
        assert damage.about()["controls"]["plans"] == []


class TestRefusals:
    @pytest.mark.parametrize(
        ("given", "said"),
        [
            ({"experts": "L9E0"}, "layer 9 is not an MoE layer"),
            ({"experts": "first"}, "names no expert"),
            ({"edit": "remove"}, "choose mask, zero, zero-renormalize, scale=FACTOR"),
            ({"edit": "scale=half"}, "'half' is not a number"),
            ({"edit": "scale=1"}, "nothing can be measured"),
            ({"targets": ["dom2"]}, "no domain 'dom2'.*did you mean dom"),
            ({"targets": ["dom0", "dom1"]}, "nothing is off target"),
            ({"match": "target-load"}, "needs a target"),
            ({"experts": "L3E0-4"}, "leaves too few for a control"),
            ({"experts": "L3E0-6", "edit": "mask", "controls": 0}, "at most 5 can be masked"),
        ],
    )
    def test_in_one_line(self, given: dict, said: str, tiny_loaded: LoadedModel) -> None:
        settings = {"experts": "L3E1", **given}
        with pytest.raises(BadInputError, match=said):
            measure_damage(tiny_loaded, some_windows(), settings.pop("experts"), **settings)

    def test_numbers_that_are_not_finite_are_no_result(self, tiny_loaded: LoadedModel) -> None:
        with pytest.raises(ModelError, match="not a finite number"):
            run(tiny_loaded, some_windows(), scale("L1E1", 1e38))

    def test_text_in_which_nothing_is_predicted(self, tiny_loaded: LoadedModel) -> None:
        lone = TextWindow("d", "dom", 0, 0, np.array([1, 5], np.int32), np.array([False, True]))
        with pytest.raises(BadInputError, match="no token with a next one"):
            measure_damage(tiny_loaded, [lone], "L3E1", controls=0)


class TestResuming:
    def test_an_interrupted_measurement_ends_in_the_same_numbers(
        self, tiny_loaded: LoadedModel, tmp_path: Path
    ) -> None:
        windows = some_windows()
        settings = {"controls": 5, "batch_tokens": 30}
        whole = measure_damage(tiny_loaded, windows, "L1E1", **settings)
        calls = 0

        def stop(_at: Progress) -> None:
            nonlocal calls
            calls += 1
            if calls == 8:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            measure_damage(
                tiny_loaded, windows, "L1E1", folder=tmp_path, on_progress=stop, **settings
            )
        path = tmp_path / "measured.jsonl"
        kept = path.read_bytes()
        path.write_bytes(kept + kept.splitlines()[-1][:20])  # killed in the middle of a line
        with pytest.raises(RunError, match="resume it, or give another folder"):
            measure_damage(tiny_loaded, windows, "L1E1", folder=tmp_path, **settings)
        with pytest.raises(
            RunError, match=r"cannot resume .*: edit was 'zero', now 'mask'; give what"
        ):
            measure_damage(
                tiny_loaded, windows, "L1E1", edit="mask", folder=tmp_path, resume=True, **settings
            )
        with pytest.raises(RunError, match=r"cannot resume .*: the text is another"):
            measure_damage(
                tiny_loaded, windows[:-1], "L1E1", folder=tmp_path, resume=True, **settings
            )
        again = measure_damage(
            tiny_loaded, windows, "L1E1", folder=tmp_path, resume=True, **settings
        )
        assert path.read_bytes().startswith(kept)
        assert again.to_pandas().equals(whole.to_pandas())
        finished = path.read_bytes()
        third = measure_damage(
            tiny_loaded, windows, "L1E1", folder=tmp_path, resume=True, **settings
        )
        assert third.to_pandas().equals(whole.to_pandas())
        assert path.read_bytes() == finished  # nothing was measured again


def test_an_edit_says_what_it_does() -> None:
    assert str(damage_edit("scale=0.5").make([ExpertRef(5, 9)])) == "L5E9 × 0.5"
    assert damage_edit("zero-renormalize").make([ExpertRef(5, 9)]).renormalize
    assert damage_edit("mask").make([ExpertRef(5, 9)]).kind == "mask"
