"""The logit lens against brute force: the norm and the head themselves, in float64."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from tests.support.tiny import MOE_MODEL_TYPES, VOCAB_SIZE, tiny_model

from moescope.errors import CoverageError, ModelError
from moescope.models.anatomy import REFUSED
from moescope.models.probe import find_anatomy
from moescope.profiles.lens import FinalScales, Lens, find_lens
from moescope.profiles.measure import Pushes
from moescope.profiles.pushes import MIN_HALF_TOKENS, rank_pushes

IDS = torch.arange(3, 35)[None]

NORM_AFTER = {"afmoe", "axk1", "beam", "flex_olmo", "gemma4_text", "kolibri1"}
"""A norm follows the experts, so what they put out is not simply added."""

STREAMS = {"deepseek_v4", "hy_v4", "inkling2_text"}
"""Several streams, or something else between the last layer and the final norm."""

NO_NORM = {"inkling_text", "qwen4_exp_text"}
"""Something stands between the final norm and the head."""

FACTORS = {"cohere2_moe": 0.5, "granitemoe": 0.5, "laguna": 1.5, "minimax_m3_vl_text": 2.0}


class Tokenizer:
    def __len__(self) -> int:
        return VOCAB_SIZE


def loaded_of(model: Any) -> Any:
    return SimpleNamespace(
        model=model, tokenizer=Tokenizer(), anatomy=find_anatomy(model, model.config)
    )


def lens_of(model_type: str, **overrides: Any) -> tuple[Any, Lens]:
    loaded = loaded_of(tiny_model(model_type, **overrides))
    return loaded, find_lens(loaded, loaded.anatomy.layers)


def final_states(model: Any, norm: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Final residuals (T, D) and logits (T, V) of one pass."""
    kept = []
    module = model.get_submodule(norm)
    handle = module.register_forward_pre_hook(lambda _m, args: kept.append(args[0]))
    with torch.no_grad():
        logits = model(input_ids=IDS, attention_mask=torch.ones_like(IDS), use_cache=False).logits
    handle.remove()
    return kept[0][0], logits[0]


def frozen(model: Any, lens: Lens, residual: torch.Tensor, vector: torch.Tensor) -> torch.Tensor:
    """W_U (γ ⊙ v · r) in float64, from the norm's own parameters and ε."""
    norm = model.get_submodule(lens.norm)
    h, v = residual.double(), vector.double()
    if lens.centred:
        h, v = h - h.mean(-1, keepdim=True), v - v.mean(-1, keepdim=True)
    eps = getattr(norm, "variance_epsilon", getattr(norm, "eps", None))
    r = 1 / torch.sqrt(h.pow(2).mean(-1, keepdim=True) + eps)
    head = model.get_output_embeddings().weight.double()
    made: torch.Tensor = (norm.weight.double() * v * r) @ head.T
    return made * lens.scale


@pytest.mark.parametrize("model_type", ["olmoe", "phimoe", "granitemoe", "cohere2_moe", "dbrx"])
def test_a_vector_in_the_stream_against_the_norm_and_head_in_float64(model_type: str) -> None:
    loaded, lens = lens_of(model_type)
    with torch.no_grad():
        loaded.model.get_submodule(lens.norm).weight.uniform_(0.3, 1.7)
    lens = find_lens(loaded, loaded.anatomy.layers)
    residual, _ = final_states(loaded.model, lens.norm)
    vector = torch.randn(residual.shape, generator=torch.manual_seed(5))
    with FinalScales(loaded.model, lens) as scales, torch.no_grad():
        loaded.model.base_model(input_ids=IDS, use_cache=False)
        scale = scales.take()
    made = lens.logits(vector * scale[:, None])
    expected = frozen(loaded.model, lens, residual, vector)
    assert made.shape == (IDS.numel(), VOCAB_SIZE)
    assert (made - expected).abs().max() < 1e-5 * expected.abs().max()


@pytest.mark.parametrize("model_type", ["olmoe", "granitemoe", "mixtral", "qwen3_next"])
def test_the_parts_of_the_stream_add_up_to_the_logits(model_type: str) -> None:
    """Linear at the frozen scale: the residual itself must give the model's own logits."""
    loaded, lens = lens_of(model_type)
    residual, logits = final_states(loaded.model, lens.norm)
    with FinalScales(loaded.model, lens) as scales, torch.no_grad():
        loaded.model.base_model(input_ids=IDS, use_cache=False)
        scaled = residual * scales.take()[:, None]
    part = torch.randn(residual.shape, generator=torch.manual_seed(1))
    whole = lens.logits(scaled - part) + lens.logits(part)
    assert (whole - logits).abs().max() < 1e-4 * logits.abs().max()


@pytest.mark.parametrize("model_type", ["olmoe", "granitemoe"])
def test_an_expert_that_is_taken_away_in_the_last_layer_takes_its_push_with_it(
    model_type: str,
) -> None:
    """No layer follows the last one: with the variance held, the logits fall by the lens's Δ."""
    loaded, lens = lens_of(model_type)
    layer = loaded.anatomy.layers[-1]
    experts = loaded.model.get_submodule(layer.site.experts)
    added = torch.randn(IDS.numel(), 32, generator=torch.manual_seed(2)) * 0.1
    before, _ = final_states(loaded.model, lens.norm)
    handle = experts.register_forward_hook(lambda _m, _a, out: out + added.reshape(out.shape))
    after, _ = final_states(loaded.model, lens.norm)
    handle.remove()
    factor = lens.paths[layer.layer_idx]
    assert isinstance(factor, float)
    assert torch.allclose(after - before, factor * added, atol=1e-5)


@pytest.mark.parametrize("model_type", sorted(set(MOE_MODEL_TYPES) - set(REFUSED)))
def test_every_architecture_has_a_path_or_a_reason(model_type: str) -> None:
    loaded = loaded_of(tiny_model(model_type))
    if model_type in NO_NORM:
        with pytest.raises(ModelError, match="no norm stands right before"):
            find_lens(loaded, loaded.anatomy.layers)
        return
    lens = find_lens(loaded, loaded.anatomy.layers)
    factors = [f for f in lens.paths.values() if isinstance(f, float)]
    reasons = [f for f in lens.paths.values() if isinstance(f, str)]
    if model_type in NORM_AFTER | STREAMS:
        assert not factors
        assert all("residual stream" in r for r in reasons)
    elif model_type == "minimax":  # its residual is what the norm put out
        assert [type(f) for f in lens.paths.values()] == [str, str, str, float]
    else:
        assert not reasons
        assert factors == [FACTORS.get(model_type, 1.0)] * len(loaded.anatomy.layers)


def test_half_precision_finds_the_same() -> None:
    for model_type in ("olmoe", "granitemoe", "phimoe"):
        made = lens_of(model_type, dtype=torch.bfloat16)[1]
        expected = lens_of(model_type)[1]
        assert made.paths == expected.paths
        assert (made.norm, made.centred) == (expected.norm, expected.centred)


def test_a_scale_and_a_bend_after_the_head_are_noticed() -> None:
    assert lens_of("cohere2_moe")[1].scale == pytest.approx(0.0625)
    assert "soft cap" in lens_of("beam")[1].note
    assert lens_of("olmoe")[1].note == ""


class TestRefusals:
    def test_a_head_that_is_not_linear(self) -> None:
        model = tiny_model("olmoe")
        head = model.get_output_embeddings()
        head.register_forward_hook(lambda _m, _a, out: out**3)
        with pytest.raises(ModelError, match="head is not linear"):
            find_lens(loaded_of(model), find_anatomy(model, model.config).layers)

    def test_no_norm_before_the_head(self) -> None:
        model = tiny_model("olmoe")
        model.lm_head.register_forward_pre_hook(lambda _m, args: (args[0] + 1.0,))
        with pytest.raises(ModelError, match="no norm stands right before"):
            find_lens(loaded_of(model), find_anatomy(model, model.config).layers)

    def test_something_before_the_head_that_is_no_norm(self) -> None:
        model: Any = tiny_model("olmoe")
        model.model.norm = torch.nn.Tanh()
        with pytest.raises(ModelError, match="neither an RMSNorm nor a LayerNorm"):
            find_lens(loaded_of(model), find_anatomy(model, model.config).layers)

    def test_a_layer_that_scales_its_residual(self) -> None:
        model: Any = tiny_model("olmoe")
        model.model.layers[2].register_forward_hook(
            lambda _m, _a, out: (out[0] if isinstance(out, tuple) else out) * 0.8
        )
        lens = find_lens(loaded_of(model), find_anatomy(model, model.config).layers)
        assert "layer 2 scales or mixes" in str(lens.paths[0])
        assert "layer 2 scales or mixes" in str(lens.paths[1])
        assert lens.paths[2] == pytest.approx(0.8)  # what its own experts add is scaled with it
        assert lens.paths[3] == 1.0

    def test_a_norm_that_ran_twice_is_no_scale(self) -> None:
        loaded, lens = lens_of("olmoe")
        with FinalScales(loaded.model, lens) as scales:
            for _ in range(2):
                loaded.model.base_model(input_ids=IDS, use_cache=False)
            with pytest.raises(CoverageError, match="ran 2 times"):
                scales.take()


class TestPushes:
    def made(self, experts: int = 5, rare: int | None = None) -> tuple[Lens, Pushes]:
        _, lens = lens_of("olmoe")
        rng = torch.manual_seed(9)
        counts = np.full((2, experts), 3 * MIN_HALF_TOKENS)
        counts[1] += 40
        if rare is not None:
            counts[1, rare] = MIN_HALF_TOKENS - 1
        own = torch.randn(experts, 32, generator=rng) + 2 * torch.randn(32, generator=rng)
        noise = 0.1 * torch.randn(2, experts, 32, generator=rng)
        sums = (own + noise) * torch.as_tensor(counts)[..., None]
        return lens, Pushes(sums.float(), counts)

    def brute(self, lens: Lens, pushes: Pushes) -> tuple[np.ndarray, np.ndarray]:
        """Own and beyond, (E, V) float64, from full logits of each expert alone."""
        sums, counts = pushes.sums.double().numpy(), pushes.counts
        mean = sums.sum(0) / counts.sum(0)[:, None]
        logits = (mean * lens.gain.double().numpy()) @ lens.head.double().numpy().T
        own = logits - logits.mean(1, keepdims=True)
        others = np.stack([np.delete(own, e, 0).mean(0) for e in range(len(own))])
        return own, own - others

    def test_promoted_and_suppressed_against_brute_force(self) -> None:
        lens, pushes = self.made()
        own, beyond = self.brute(lens, pushes)
        made = rank_pushes(lens, pushes)
        rows = made.ids.shape[2]
        for e in range(5):
            assert made.ids[0, e].tolist() == np.argsort(-beyond[e])[:rows].tolist()
            assert made.ids[1, e].tolist() == np.argsort(beyond[e])[:rows].tolist()
            for side in (0, 1):
                at = made.ids[side, e]
                assert np.allclose(made.own[side, e], own[e, at], atol=1e-5)
                assert np.allclose(made.beyond[side, e], beyond[e, at], atol=1e-5)
        assert np.allclose(made.spread, beyond.std(1), rtol=1e-4)

    def test_what_all_experts_promote_marks_none_of_them(self) -> None:
        lens, pushes = self.made()
        common = torch.linalg.pinv(lens.head.float() * lens.gain)[:, 17] * 1000  # pushes id 17
        sums = pushes.sums + common * torch.as_tensor(pushes.counts)[..., None]
        plain, shifted = rank_pushes(lens, pushes), rank_pushes(lens, Pushes(sums, pushes.counts))
        own, _ = self.brute(lens, Pushes(sums, pushes.counts))
        assert (own.argmax(1) == 17).all()  # it leads every expert's own push …
        assert np.allclose(plain.beyond, shifted.beyond, atol=1e-2)  # … and no list changes

    def test_halves_say_how_repeatable_it_is(self) -> None:
        lens, pushes = self.made()
        alike = rank_pushes(lens, pushes)
        assert (alike.agreement > 0.9).all()
        assert (alike.overlap > 0.5).all()
        noise = torch.randn(pushes.sums.shape, generator=torch.manual_seed(3))
        unlike = rank_pushes(lens, Pushes(noise, pushes.counts))
        assert (np.abs(unlike.agreement) < 0.5).all()
        assert unlike.overlap.mean() < 0.35  # by chance 20 of 128 tokens: 0.16

    def test_halves_that_are_the_same_agree_wholly(self) -> None:
        lens, pushes = self.made()
        same = Pushes(pushes.sums[:1].repeat(2, 1, 1), pushes.counts[:1].repeat(2, 0))
        made = rank_pushes(lens, same)
        assert made.agreement == pytest.approx(np.ones(5))
        assert (made.overlap == 1).all()
        assert np.allclose(made.halves[0], made.halves[1])

    def test_an_expert_with_too_few_tokens_has_no_push_and_is_no_other(self) -> None:
        lens, pushes = self.made(rare=2)
        made = rank_pushes(lens, pushes)
        assert (made.ids[:, 2] == -1).all()
        assert np.isnan(made.agreement[2])
        kept = np.array([0, 1, 3, 4])
        without = rank_pushes(lens, Pushes(pushes.sums[:, kept], pushes.counts[:, kept]))
        assert np.array_equal(made.ids[:, kept], without.ids)

    def test_an_expert_that_is_alone_is_ranked_by_its_own_push(self) -> None:
        lens, pushes = self.made(experts=1)
        made = rank_pushes(lens, pushes)
        assert np.allclose(made.own, made.beyond)
        assert made.own[0, 0, 0] > 0 > made.own[1, 0, 0]
