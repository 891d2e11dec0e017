"""Ship the trained demo model: its files, losses measured on those very files, its card.

    python tools/build_corpora.py --out DIR
    moescope train src/moescope/demo/recipe.yaml -o RUN --set data.train=DIR/train ...
    moescope train src/moescope/demo/recipe.yaml -o DENSE ...   (SOURCES.md has both whole)
    python tools/demo_card.py --run RUN --dense DENSE --to src/moescope/demo/moe-10m

Every number on the card comes from RUN/log or is measured here, on the files just written.
"""

from __future__ import annotations

import argparse
import json
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from moescope.demo.checkpoints import CHECKPOINTS, pack_checkpoint, restore_checkpoint
from moescope.training.data import Ids, Streams, heldout_windows, prepare_data, unigram_losses
from moescope.training.kernels import chunked_cross_entropy
from moescope.training.log import TrainingLog
from moescope.training.recipe import Recipe
from moescope.training.recipe_file import load_recipe

TEMPLATE = Path(__file__).with_name("demo_card_template.md")
SAMPLES = Path(__file__).resolve().parents[1] / "src/moescope/demo/samples"
HELD_TOKENS = 30_720
"""Held-out tokens of each domain that the card's losses are measured on."""

PROMPTS = (
    "The President of the United States",
    "def __init__(self",
    "It is a truth universally acknowledged, that",
    "And the LORD said unto",
    "Die Direktive",
    "Theorem ",
)


@dataclass(frozen=True)
class Measured:
    """One model file on held-out text: loss by domain, and its choices by layer (T, K)."""

    losses: dict[str, float]
    choices: list[torch.Tensor]


@torch.no_grad()
def measure(folder: Path, windows: dict[str, np.ndarray], probe: int = 1024) -> Measured:
    """Nats per token of the files in a folder; choices for the first tokens of every domain."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    top_k = model.config.num_experts_per_tok
    losses: dict[str, float] = {}
    choices: list[list[torch.Tensor]] = []
    for name, rows in windows.items():
        total = 0.0
        for start in range(0, len(rows), 8):
            tokens = torch.from_numpy(rows[start : start + 8])
            out = model.model(tokens[:, :-1], use_cache=False, output_router_logits=True)
            hidden, targets = out.last_hidden_state.flatten(0, 1), tokens[:, 1:].reshape(-1)
            total += float(chunked_cross_entropy(hidden, model.lm_head.weight, targets)) * len(
                targets
            )
            if start == 0:
                ids = [logits[:probe].topk(top_k).indices for logits in out.router_logits]
                choices.append(ids)
        losses[name] = total / rows[:, 1:].size
    return Measured(losses, [torch.cat(layer) for layer in zip(*choices, strict=True)])


def overlap(one: torch.Tensor, other: torch.Tensor) -> float:
    """Mean share of a token's experts that both choose."""
    return float((one[:, :, None] == other[:, None, :]).any(-1).double().mean())


def sample_losses(folder: Path, tokenizer: Any, context: int) -> dict[str, float]:
    """Loss on each shipped sample, in whole windows."""
    windows = {}
    for path in sorted(SAMPLES.glob("*.jsonl")):
        texts = [json.loads(line)["text"] for line in path.read_text("utf-8").splitlines()]
        ids: list[int] = []
        for item in tokenizer.backend_tokenizer.encode_batch(texts):
            ids += [*item.ids, tokenizer.eos_token_id]
        windows[path.stem] = heldout_windows(np.array(ids), context, len(ids))
    return measure(folder, windows).losses


def generation(model: Any, tokenizer: Any, prompt: str) -> str:
    inputs = tokenizer(prompt, return_tensors="pt")
    torch.manual_seed(0)
    out = model.generate(**inputs, max_new_tokens=40, do_sample=True, temperature=0.7, top_k=40)
    text: str = tokenizer.decode(out[0], skip_special_tokens=True)
    return text


def ship(source: Path, target: Path) -> None:
    """Copy the stock model of a run; the folder's card is written afterwards."""
    target.mkdir(parents=True, exist_ok=True)
    for path in source.iterdir():
        shutil.copyfile(path, target / path.name)


def loss_rows(
    streams: dict[str, Ids],
    windows: dict[str, np.ndarray],
    vocab_size: int,
    measured: list[dict[str, float]],
    samples: dict[str, float],
) -> tuple[str, str]:
    """The table of losses, and its row of means."""
    unigram = unigram_losses(streams, windows, vocab_size)
    lines, columns = [], []
    for name in windows:
        values = [m[name] for m in measured] + list(unigram[name])
        columns.append(values)
        cells = " | ".join("–" if np.isnan(v) else f"{v:.3f}" for v in values)
        sample = f"{samples[name]:.3f}" if name in samples else "not shipped"
        lines.append(
            f"| {name} | {len(streams[name]):,} | {windows[name][:, 1:].size:,} | {cells} | "
            f"{sample} |"
        )
    averages = np.mean(columns, axis=0)
    means = " | ".join("–" if np.isnan(v) else f"**{v:.3f}**" for v in averages)
    return "\n".join(lines), means


def balance_rows(choices: list[torch.Tensor], num_experts: int) -> str:
    lines = []
    for layer, ids in enumerate(choices):
        counts = torch.bincount(ids.flatten(), minlength=num_experts).double()
        busiest = float(counts.max() / counts.mean())
        lines.append(f"| {layer} | {busiest:.2f} | {int((counts == 0).sum())} |")
    return "\n".join(lines)


def saturation_rows(
    run: Path, windows: dict[str, np.ndarray], final: Measured
) -> tuple[str, float]:
    """Agreement of the kept models with the finished one, and of their packed files with them."""
    lines, rounding = [], []
    few = {name: rows[:2] for name, rows in windows.items()}
    for folder in sorted((run / "checkpoints").iterdir()):
        step = int(folder.name.removeprefix("step-"))
        early = measure(folder, few)
        pack_checkpoint(folder, CHECKPOINTS / f"{folder.name}.safetensors")
        with tempfile.TemporaryDirectory() as scratch:
            packed = measure(restore_checkpoint(step, scratch), few)
        rounding += [overlap(a, b) for a, b in zip(packed.choices, early.choices, strict=True)]
        shares = [overlap(a, b) for a, b in zip(early.choices, final.choices, strict=True)]
        cells = " | ".join(f"{s:.2f}" for s in shares)
        lines.append(f"| {step:,} | {np.mean(list(early.losses.values())):.3f} | {cells} |")
    return "\n".join(lines), min(rounding)


def dense_note(dense: Path | None) -> str:
    """What the column ``dense`` is."""
    if dense is None:
        return "`dense` (a model of equal active size) is not measured yet."
    model = AutoModelForCausalLM.from_pretrained(dense)
    size = sum(p.numel() for p in model.parameters())
    return (
        f"`dense` is a model of equal active size ({size:,} parameters: one expert of four\n"
        "times the width in every layer, which every token meets), trained on the same tokens in "
        "the\nsame order by the same recipe."
    )


def card(recipe: Recipe, data: Streams, run: Path, dense: Path | None, target: Path) -> str:
    """The model card, every number out of the log or measured just now."""
    context, sizes = recipe.data.context, recipe.model
    windows = {n: heldout_windows(s, context, HELD_TOKENS) for n, s in data.heldout.items()}
    tokenizer = AutoTokenizer.from_pretrained(target)
    model = AutoModelForCausalLM.from_pretrained(target, dtype=torch.float32).eval()
    ours = measure(target, windows)
    theirs = (
        dict.fromkeys(windows, float("nan")) if dense is None else measure(dense, windows).losses
    )
    samples = sample_losses(target, tokenizer, context)
    table, means = loss_rows(data.train, windows, len(tokenizer), [ours.losses, theirs], samples)
    log = TrainingLog.read(run, "steps").to_pandas()
    seconds = float((recipe.step_tokens / log["tokens_per_second"]).sum())
    tokens = int(log["tokens"].iloc[-1])
    each = tokens / len(data.train)
    passes = {name: each / len(stream) for name, stream in data.train.items()}
    most = max(passes, key=lambda name: passes[name])
    parameters = sum(p.numel() for p in model.parameters())
    one = 3 * sizes.hidden_size * sizes.intermediate_size
    idle = sizes.num_hidden_layers * (sizes.num_experts - sizes.top_k) * one
    saturation, rounding = saturation_rows(run, windows, ours)
    return TEMPLATE.read_text(encoding="utf-8").format(
        layers=sizes.num_hidden_layers,
        hidden=sizes.hidden_size,
        heads=sizes.num_attention_heads,
        experts=sizes.num_experts,
        inner=sizes.intermediate_size,
        top_k=sizes.top_k,
        positions=sizes.max_position_embeddings,
        context=context,
        parameters=parameters,
        active=parameters - idle,
        dense_note=dense_note(dense),
        vocab=len(tokenizer),
        tokens=tokens,
        tokens_m=tokens / 1e6,
        steps=len(log),
        batch=recipe.step_tokens,
        minutes=seconds / 60,
        rate=tokens / seconds,
        num_domains=len(data.train),
        sequences=recipe.train.sequences * recipe.train.micro_batches,
        each=each,
        most=most,
        passes=passes[most],
        rows=table,
        means=means,
        balance_tokens=len(ours.choices[0]),
        balance_rows=balance_rows(ours.choices, sizes.num_experts),
        layer_heads=" | ".join(f"L{n}" for n in range(sizes.num_hidden_layers)),
        layer_rule="---|" * sizes.num_hidden_layers,
        saturation_rows=saturation,
        rounding=rounding,
        saturation_chance=sizes.top_k / sizes.num_experts,
        generations="\n".join(
            "    " + generation(model, tokenizer, prompt).replace("\n", "\n    ") + "\n"
            for prompt in PROMPTS
        ),
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--run", type=Path, required=True, help="folder of the training")
    parser.add_argument("--dense", type=Path, help="folder of the dense training")
    parser.add_argument("--to", type=Path, required=True, help="where the model is shipped")
    options = parser.parse_args()
    recipe = load_recipe(options.run / "recipe.yaml")
    data = prepare_data(recipe, options.run)
    ship(options.run / "model", options.to)
    dense = options.dense and options.dense / "model"
    text = card(recipe, data, options.run, dense, options.to)
    (options.to / "README.md").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
