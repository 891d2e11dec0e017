"""Ship the trained demo model: bfloat16 files, losses measured on those very files, the card.

    python tools/demo_card.py --data DIR --run RUN --to src/moescope/demo/moe-10m

Every number on the card comes from RUN/log.jsonl or is measured here, on the files just written.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812
import yaml
from demo_data import documents, encode, make_tokenizer
from train_demo import RECIPE, load_checkpoint, new_model
from transformers import AutoModelForCausalLM, AutoTokenizer, OlmoeForCausalLM

TEMPLATE = Path(__file__).with_name("demo_card_template.md")
PROMPTS = (
    "The President of the United States",
    "def __init__(self",
    "It is a truth universally acknowledged, that",
    "And the LORD said unto",
    "Die Direktive",
    "Theorem ",
)


@torch.no_grad()
def stream_loss(
    model: OlmoeForCausalLM, stream: np.ndarray, context: int, limit: int
) -> tuple[float, int]:
    """Mean nats per token over the first `limit` tokens, each predicted once, by windows."""
    model.eval()
    total = count = 0
    for start in range(0, min(limit, len(stream) - 1), context * 8):
        rows = [
            stream[s : s + context + 1]
            for s in range(start, min(start + context * 8, limit), context)
        ]
        rows = [row for row in rows if len(row) == context + 1]
        if rows:
            batch = torch.from_numpy(np.stack(rows).astype(np.int64))
            logits = model(batch[:, :-1], use_cache=False).logits.float()
            total += float(
                F.cross_entropy(logits.flatten(0, 1), batch[:, 1:].flatten(), reduction="sum")
            )
            count += batch[:, 1:].numel()
    return total / max(1, count), count


def evaluate(model, train_streams, held_streams, recipe: dict) -> dict:
    """Held-out loss of each domain beside two unigram models fit on training text (add-one).

    `unigram` weighs all domains the same; `unigram_domain` knows the right one, harder to beat.
    """
    size = model.config.vocab_size
    shares = {
        name: (np.bincount(s, minlength=size) + 1.0) / (len(s) + size)
        for name, s in train_streams.items()
    }
    pooled = np.mean(list(shares.values()), axis=0)
    result = {}
    for name, stream in held_streams.items():
        loss, count = stream_loss(
            model, stream, recipe["train"]["context"], recipe["train"]["evaluate_tokens"]
        )
        told = stream[1 : count + 1]
        result[name] = {
            "tokens": count,
            "loss": round(loss, 4),
            "unigram": round(float(-np.log(pooled[told]).mean()), 4),
            "unigram_domain": round(float(-np.log(shares[name][told]).mean()), 4),
        }
    return result


def read_log(run: Path) -> list[dict]:
    """Steps in order; of a step that was repeated after a resume, the last time counts."""
    lines = (run / "log.jsonl").read_text(encoding="utf-8").splitlines()
    steps = {line["step"]: line for line in map(json.loads, lines)}
    return [steps[number] for number in sorted(steps)]


def export(run: Path, tokenizer, recipe: dict, target: Path) -> dict:
    model = new_model(recipe, tokenizer, "eager")
    state = load_checkpoint(run / "checkpoint", model, None)
    target.mkdir(parents=True, exist_ok=True)
    model.to(torch.bfloat16).save_pretrained(target)
    tokenizer.save_pretrained(target)
    for path in target.iterdir():
        path.chmod(0o644)
    return state


def generation(model, tokenizer, prompt: str) -> str:
    inputs = tokenizer(prompt, return_tensors="pt")
    torch.manual_seed(0)
    out = model.generate(**inputs, max_new_tokens=40, do_sample=True, temperature=0.7, top_k=40)
    return tokenizer.decode(out[0], skip_special_tokens=True)


@torch.no_grad()
def routing_balance(model: OlmoeForCausalLM, streams: dict[str, np.ndarray]) -> list[dict]:
    """Per layer: the busiest expert's load (1 = a fair share), and experts that no token chose."""
    config = model.config
    counts = torch.zeros(config.num_hidden_layers, config.num_experts)
    for stream in streams.values():
        window = torch.from_numpy(stream[:512].astype(np.int64))[None]
        out = model.model(window, use_cache=False, output_router_logits=True)
        for layer, logits in enumerate(out.router_logits):
            ids = logits.topk(config.num_experts_per_tok, dim=-1).indices.flatten()
            counts[layer] += torch.bincount(ids, minlength=config.num_experts)
    loads = counts / counts.sum(dim=-1, keepdim=True) * config.num_experts
    return [{"largest": float(row.max()), "never": int((row == 0).sum())} for row in loads]


def sample_losses(model, tokenizer, train: dict, folder: Path) -> dict[str, float]:
    """Loss on each shipped sample, read from the package's own folder."""
    result = {}
    for path in sorted(folder.glob("*.jsonl")):
        texts = [json.loads(line)["text"] for line in path.read_text("utf-8").splitlines()]
        stream = encode({path.stem: texts}, tokenizer, None)[path.stem]
        result[path.stem] = stream_loss(model, stream, train["context"], len(stream))[0]
    return result


def card(
    model, tokenizer, recipe: dict, log: list[dict], streams, domains, samples, balance
) -> str:
    """The model card, every number out of the log or measured just now."""
    config, train, last = model.config, recipe["train"], log[-1]
    one_expert = 3 * config.hidden_size * config.intermediate_size
    asleep = (config.num_experts - config.num_experts_per_tok) * one_expert
    parameters = sum(p.numel() for p in model.parameters())
    each = last["tokens"] / len(streams)
    most = max(streams, key=lambda name: each / len(streams[name]))
    rows = []
    for name, row in domains.items():
        measured = f"{row['loss']:.3f} | {row['unigram']:.3f} | {row['unigram_domain']:.3f}"
        sample = f"{samples[name]:.3f}" if name in samples else "not shipped"
        rows.append(
            f"| {name} | {len(streams[name]):,} | {row['tokens']:,} | {measured} | {sample} |"
        )
    return TEMPLATE.read_text(encoding="utf-8").format(
        layers=config.num_hidden_layers,
        hidden=config.hidden_size,
        heads=config.num_attention_heads,
        experts=config.num_experts,
        inner=config.intermediate_size,
        top_k=config.num_experts_per_tok,
        positions=config.max_position_embeddings,
        context=train["context"],
        parameters=parameters,
        active=parameters - config.num_hidden_layers * asleep,
        vocab=config.vocab_size,
        tokens=last["tokens"],
        tokens_m=last["tokens"] / 1e6,
        steps=last["step"],
        batch=last["tokens"] // last["step"],
        minutes=last["seconds"] / 60,
        rate=last["tokens"] / last["seconds"],
        num_domains=len(streams),
        epochs=f"Each domain gave {each:,.0f} tokens, which is {each / len(streams[most]):.2f} "
        f"times what there is of the smallest ({most})"
        + (":\nno window was seen twice." if each < len(streams[most]) else "."),
        rows="\n".join(rows),
        mean_loss=np.mean([r["loss"] for r in domains.values()]),
        mean_unigram=np.mean([r["unigram"] for r in domains.values()]),
        mean_own=np.mean([r["unigram_domain"] for r in domains.values()]),
        balance_tokens=512 * len(streams),
        balance_rows="\n".join(
            f"| {layer} | {row['largest']:.2f} | {row['never']} |"
            for layer, row in enumerate(balance)
        ),
        generations="\n".join(
            "    " + generation(model, tokenizer, prompt).replace("\n", "\n    ") + "\n"
            for prompt in PROMPTS
        ),
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True, help="folder of build_corpora.py")
    parser.add_argument("--run", type=Path, required=True, help="folder of train_demo.py")
    parser.add_argument("--to", type=Path, default=RECIPE.parent / "model")
    options = parser.parse_args()
    recipe = yaml.safe_load(RECIPE.read_text(encoding="utf-8"))
    texts = documents(options.data, "train")
    tokenizer = make_tokenizer(texts, recipe, options.run / "tokenizer")
    state = export(options.run, tokenizer, recipe, options.to)
    log = [line for line in read_log(options.run) if line["step"] <= state["step"]]
    model = AutoModelForCausalLM.from_pretrained(options.to, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(options.to)
    print(f"step {state['step']}, {type(model).__name__}, {model.dtype}", flush=True)
    streams = encode(texts, tokenizer, options.run / "tokens")
    held = encode(documents(options.data, "heldout"), tokenizer, None)
    domains = evaluate(model, streams, held, recipe)
    samples = sample_losses(model, tokenizer, recipe["train"], RECIPE.parent / "samples")
    balance = routing_balance(model, held)
    text = card(model, tokenizer, recipe, log, streams, domains, samples, balance)
    (options.to / "README.md").write_text(text, encoding="utf-8")
    for name, row in domains.items():
        print(name, row, flush=True)


if __name__ == "__main__":
    main()
