"""What is shipped works: the model in stock transformers, its early steps, the main job on it."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
import typer
from tools.build_reference import commands
from transformers import AutoModelForCausalLM, AutoTokenizer

from moescope.cli.main import app
from moescope.demo import MODEL, SAMPLES, checkpoint_steps, restore_checkpoint, run_demo
from moescope.demo.checkpoints import CHECKPOINTS, pack_checkpoint
from moescope.errors import BadInputError
from moescope.metrics.runs import compare_runs

DOMAINS = sorted(path.stem for path in SAMPLES.glob("*.jsonl"))
TOKENS = 3072


@pytest.fixture(scope="module")
def model():  # type: ignore[no-untyped-def]
    return AutoModelForCausalLM.from_pretrained(MODEL, dtype=torch.float32).eval()


def sample_tokens(domain: str) -> np.ndarray:
    tokenizer = AutoTokenizer.from_pretrained(MODEL)
    lines = (SAMPLES / f"{domain}.jsonl").read_text("utf-8").splitlines()
    ids = [i for line in lines for i in tokenizer(json.loads(line)["text"])["input_ids"]]
    return np.asarray(ids[: TOKENS + 1])


def test_the_shipped_model_is_small_but_a_real_mixture(model) -> None:  # type: ignore[no-untyped-def]
    config = model.config
    assert config.model_type == "olmoe"
    assert config.num_hidden_layers >= 6
    assert 32 <= config.num_experts <= 64
    assert 4 <= config.num_experts_per_tok <= 8
    assert len(DOMAINS) >= 12
    weights = MODEL / "model.safetensors"
    assert weights.stat().st_size <= 40e6


@pytest.mark.parametrize("domain", DOMAINS)
def test_its_loss_is_far_below_what_word_frequencies_give_in_every_domain(
    domain: str, model
) -> None:  # type: ignore[no-untyped-def]
    """The frequencies are those of the measured text itself: no unigram model can do better."""
    tokens = sample_tokens(domain)
    targets = tokens[1:]
    share = np.bincount(targets) / targets.size
    unigram = -float(np.log(share[targets]).mean())
    with torch.no_grad():
        rows = torch.from_numpy(tokens[:-1].reshape(-1, 256))
        logits = model(rows, use_cache=False).logits.flatten(0, 1)
        loss = float(torch.nn.functional.cross_entropy(logits, torch.from_numpy(targets)))
    assert loss < unigram - 0.75


def test_an_early_step_comes_back_as_a_stock_model_with_the_weights_that_were_packed(
    tmp_path: Path,
) -> None:
    """Rounding moves a weight by at most half a step: its row's largest weight / 127 / 2."""
    folder = restore_checkpoint(checkpoint_steps()[0], tmp_path / "early")
    early = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).state_dict()
    pack_checkpoint(MODEL, tmp_path / "packed" / "x.safetensors")
    assert (tmp_path / "packed" / "x.safetensors").stat().st_size < 0.55 * (
        MODEL / "model.safetensors"
    ).stat().st_size
    final = AutoModelForCausalLM.from_pretrained(MODEL, dtype=torch.float32).state_dict()
    assert early.keys() == final.keys()
    name = "model.layers.2.mlp.experts.down_proj"
    assert early[name].abs().sum() > 0
    assert not torch.equal(early[name], final[name])


def test_packing_moves_no_weight_by_more_than_half_a_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("moescope.demo.checkpoints.CHECKPOINTS", tmp_path)
    pack_checkpoint(MODEL, tmp_path / "step-000007.safetensors")
    folder = restore_checkpoint(7, tmp_path / "model")
    back = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).state_dict()
    true = AutoModelForCausalLM.from_pretrained(MODEL, dtype=torch.float32).state_dict()
    for name, tensor in true.items():
        step = tensor.abs().amax(-1, keepdim=True) / 127
        bfloat16 = tensor.abs() / 256
        assert bool(((back[name] - tensor).abs() <= 0.5 * step + bfloat16 + 1e-9).all()), name


def test_a_step_that_was_not_kept_is_refused_with_those_that_were(tmp_path: Path) -> None:
    with pytest.raises(BadInputError, match=str(checkpoint_steps()[-1])):
        restore_checkpoint(3, tmp_path)


def test_the_help_of_demo_names_the_steps_that_are_shipped() -> None:
    verb = commands(typer.main.get_command(app))["demo"]
    text = " ".join(str(p.help) for p in verb.params if p.name == "step")
    assert [int(n) for n in re.findall(r"\d+", text)] == checkpoint_steps()
    assert len(list(CHECKPOINTS.iterdir())) == 3


def test_the_routing_of_a_later_step_is_nearer_to_the_finished_one(tmp_path: Path) -> None:
    """Saturation: chance is K/E = 4/32; it grows with training in the mean over layers."""
    final = run_demo(tmp_path / "final", limit=300).run
    means = []
    for step in checkpoint_steps():
        early = run_demo(tmp_path / f"step-{step}", limit=300, step=step).run
        table = compare_runs(early, final).to_pandas()
        means.append(table[table.domain == "all"].saturation.mean())
    assert 4 / 32 < means[0] < means[1] < means[2] < 1
