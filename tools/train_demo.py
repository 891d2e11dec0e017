"""Train the demo MoE (OLMoE architecture) from recipe.yaml on the corpora of build_corpora.py.

    python tools/train_demo.py --data DIR --out RUN            tokenizer, training, resuming
    python tools/train_demo.py --data DIR --out RUN --bench    time implementations and dtypes
    python tools/demo_card.py --data DIR --run RUN --to MODEL  shipped files, their losses, the card

RUN holds log.jsonl (one JSON object a line) and checkpoint/ (safetensors, replaced as a whole). A
run that is killed loses at most what came after the last checkpoint.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import math
import os
import shutil
import time
from pathlib import Path

import torch
import torch.nn.functional as F  # noqa: N812
import yaml
from demo_data import Batches, documents, encode, make_tokenizer
from safetensors.torch import load_file, save_file
from transformers import OlmoeConfig, OlmoeForCausalLM, PreTrainedTokenizerFast
from transformers.integrations.moe import ALL_EXPERTS_FUNCTIONS

RECIPE = Path(__file__).resolve().parents[1] / "src/moescope/demo/recipe.yaml"


def sorted_experts(self, hidden_TD, topk_ids_TK, topk_weights_TK):
    """Each expert once, on a contiguous slice of the tokens sorted by expert.

    Indexing a stacked parameter expert by expert makes autograd write a full-size gradient for
    every expert; unbinding it once does not, and that is most of the difference on a processor.
    """
    num_tokens, top_k = topk_ids_TK.shape
    order = torch.argsort(topk_ids_TK.reshape(-1), stable=True)
    sizes = torch.bincount(topk_ids_TK.reshape(-1), minlength=self.num_experts).tolist()
    slices = hidden_TD[order // top_k].split(sizes)
    outputs = []
    for rows, gate_up, down in zip(
        slices, self.gate_up_proj.unbind(0), self.down_proj.unbind(0), strict=True
    ):
        gate, up = F.linear(rows, gate_up).chunk(2, dim=-1)
        outputs.append(F.linear(F.silu(gate) * up, down))
    weighted = torch.cat(outputs) * topk_weights_TK.reshape(-1)[order].unsqueeze(-1)
    back = torch.empty_like(order)
    back[order] = torch.arange(order.numel())
    return weighted[back].view(num_tokens, top_k, -1).sum(dim=1).to(hidden_TD.dtype)


ALL_EXPERTS_FUNCTIONS.register("sorted", sorted_experts)


class ChunkedCrossEntropy(torch.autograd.Function):
    """Mean cross-entropy without ever holding all logits: forward takes the gradients on its way.

    Tokens times vocabulary is by far the largest array of a small model; a slice stays in cache.
    """

    @staticmethod
    def forward(ctx, hidden_TD, weight_VD, targets_T, rows=256):  # noqa: D102
        grad_hidden_TD, grad_weight_VD = torch.empty_like(hidden_TD), torch.zeros_like(weight_VD)
        total = hidden_TD.new_zeros(())
        for start in range(0, len(targets_T), rows):
            part, goal = hidden_TD[start : start + rows], targets_T[start : start + rows, None]
            probs = (part @ weight_VD.T).float()
            probs -= probs.amax(dim=-1, keepdim=True)
            told = probs.gather(1, goal)
            sums = probs.exp_().sum(dim=-1, keepdim=True)
            total += (sums.log() - told).sum()
            probs /= sums
            probs.scatter_add_(1, goal, torch.full_like(told, -1.0))
            probs /= len(targets_T)
            grad_hidden_TD[start : start + rows] = probs @ weight_VD
            grad_weight_VD.addmm_(probs.T, part)
        ctx.save_for_backward(grad_hidden_TD, grad_weight_VD)
        return total / len(targets_T)

    @staticmethod
    def backward(ctx, grad):  # noqa: D102
        grad_hidden_TD, grad_weight_VD = ctx.saved_tensors
        return grad * grad_hidden_TD, grad * grad_weight_VD, None, None


def keep_memory() -> None:
    """Let glibc reuse large blocks: fresh pages at every step cost up to a third of the time."""
    try:
        libc = ctypes.CDLL("libc.so.6")
        libc.mallopt(-4, 0)  # M_MMAP_MAX: no block of its own mapping
        libc.mallopt(-1, 2**31 - 1)  # M_TRIM_THRESHOLD
    except OSError:
        pass  # another C library: slower, not wrong


def new_model(
    recipe: dict, tokenizer: PreTrainedTokenizerFast, experts: str, attention: str = "sdpa"
) -> OlmoeForCausalLM:
    torch.manual_seed(recipe["seed"])
    config = OlmoeConfig(
        vocab_size=len(tokenizer),
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.eos_token_id,
        bos_token_id=None,
        **recipe["model"],
    )
    model = OlmoeForCausalLM._from_config(config, attn_implementation=attention)
    model.set_experts_implementation(experts)
    return model


def losses(
    model: OlmoeForCausalLM, batch: torch.Tensor, train: dict
) -> tuple[torch.Tensor, dict[str, float]]:
    """Cross-entropy, plus each layer's Switch load-balancing loss and router z-loss, summed."""
    config = model.config
    with torch.autocast("cpu", torch.bfloat16, enabled=train["autocast"] == "bfloat16"):
        out = model.model(batch[:, :-1], use_cache=False, output_router_logits=True)
    hidden_TD = out.last_hidden_state.float().flatten(0, 1)
    cross_entropy = ChunkedCrossEntropy.apply(
        hidden_TD, model.lm_head.weight, batch[:, 1:].flatten()
    )
    balance = z = 0.0
    loads = []
    for router_logits_TE in out.router_logits:
        router_logits_TE = router_logits_TE.float()
        probs_TE = router_logits_TE.softmax(dim=-1)
        ids = probs_TE.topk(config.num_experts_per_tok, dim=-1).indices.flatten()
        share_E = torch.bincount(ids, minlength=config.num_experts) / ids.numel()
        balance = balance + config.num_experts * (share_E * probs_TE.mean(0)).sum()
        z = z + router_logits_TE.logsumexp(dim=-1).square().mean()
        loads.append(float(share_E.max() * config.num_experts))  # 1 = a fair share
    layers = len(out.router_logits)
    total = cross_entropy + train["load_balancing"] * balance + train["router_z"] * z
    return total, {
        "loss": float(cross_entropy.detach()),
        "load_balancing_loss": float(balance.detach()) / layers,
        "router_z_loss": float(z.detach()) / layers,
        "largest_load": max(loads),  # of any layer's busiest expert, 1 = its fair share
    }


def make_optimizer(model: OlmoeForCausalLM, train: dict) -> torch.optim.AdamW:
    matrices = [p for p in model.parameters() if p.ndim >= 2]
    vectors = [p for p in model.parameters() if p.ndim < 2]
    groups = [
        {"params": matrices, "weight_decay": train["weight_decay"]},
        {"params": vectors, "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=0.0, betas=tuple(train["betas"]), eps=1e-8, foreach=True)


def learning_rate(progress: float, train: dict) -> float:
    peak, final, warmup = train["learning_rate"], train["final_learning_rate"], train["warmup"]
    if progress < warmup:
        return peak * max(progress, 1e-3) / warmup
    fraction = min(1.0, (progress - warmup) / (1 - warmup))
    return final + (peak - final) * 0.5 * (1 + math.cos(math.pi * fraction))


def save_checkpoint(
    folder: Path, model: OlmoeForCausalLM, optimizer: torch.optim.AdamW, state: dict
) -> None:
    """Written beside, then renamed: there is always one whole checkpoint."""
    fresh = folder.with_name(folder.name + ".new")
    shutil.rmtree(fresh, ignore_errors=True)
    fresh.mkdir(parents=True)
    save_file(
        {name: p.detach() for name, p in model.named_parameters()}, fresh / "weights.safetensors"
    )
    moments = {
        f"{i}.{key}": v for i, s in optimizer.state_dict()["state"].items() for key, v in s.items()
    }
    save_file(moments, fresh / "optimizer.safetensors")
    (fresh / "state.json").write_text(json.dumps(state), encoding="utf-8")
    old = folder.with_name(folder.name + ".old")
    shutil.rmtree(old, ignore_errors=True)
    if folder.exists():
        folder.rename(old)
    fresh.rename(folder)


def load_checkpoint(
    folder: Path, model: OlmoeForCausalLM, optimizer: torch.optim.AdamW | None
) -> dict:
    for candidate in (folder, folder.with_name(folder.name + ".old")):
        if (candidate / "state.json").exists():
            break
    else:
        return {"step": 0, "seconds": 0.0}
    weights = load_file(candidate / "weights.safetensors")
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(weights[name])
    if optimizer is not None:
        state: dict[int, dict] = {}
        for name, value in load_file(candidate / "optimizer.safetensors").items():
            index, key = name.split(".", 1)
            state.setdefault(int(index), {})[key] = value
        optimizer.load_state_dict(
            {"state": state, "param_groups": optimizer.state_dict()["param_groups"]}
        )
    return json.loads((candidate / "state.json").read_text(encoding="utf-8"))


def run_training(model: OlmoeForCausalLM, batches: Batches, recipe: dict, out: Path) -> dict:
    train = recipe["train"]
    optimizer = make_optimizer(model, train)
    state = load_checkpoint(out / "checkpoint", model, optimizer)
    budget = train["minutes"] * 60
    tokens_a_step = batches.per_step * train["context"]
    model.train()
    saved = last = time.monotonic()
    with (out / "log.jsonl").open("a", encoding="utf-8") as log:
        while state["seconds"] < budget:
            rate = learning_rate(state["seconds"] / budget, train)
            for group in optimizer.param_groups:
                group["lr"] = rate
            total, parts = losses(model, batches(state["step"]), train)
            total.backward()
            norm = torch.nn.utils.clip_grad_norm_(model.parameters(), train["gradient_clip"])
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            now = time.monotonic()
            state["step"] += 1
            state["seconds"] += now - last
            line = {
                "step": state["step"],
                "tokens": state["step"] * tokens_a_step,
                "seconds": state["seconds"],
                "learning_rate": rate,
                "gradient_norm": float(norm),
                "tokens_per_second": tokens_a_step / (now - last),
            } | parts
            last = now
            log.write(json.dumps({key: round(value, 6) for key, value in line.items()}) + "\n")
            log.flush()
            if now - saved > train["checkpoint_seconds"] or state["seconds"] >= budget:
                save_checkpoint(out / "checkpoint", model, optimizer, state)
                saved = now
    return state


def bench(recipe: dict, tokenizer, batches: Batches, steps: int = 4) -> None:
    """Seconds a step, update included, of each implementation and arithmetic: the best of a few."""
    for autocast in ("float32", "bfloat16"):
        for experts in ("sorted", "grouped_mm", "eager"):
            train = recipe["train"] | {"autocast": autocast}
            model = new_model(recipe, tokenizer, experts)
            optimizer = make_optimizer(model, train)
            best = float("inf")
            for step in range(steps):
                begin = time.monotonic()
                try:
                    total, parts = losses(model, batches(step), train)
                    total.backward()
                except RuntimeError as error:
                    print(
                        f"{autocast:9} {experts:11} not available: {str(error).splitlines()[0]}",
                        flush=True,
                    )
                    break
                optimizer.step()
                optimizer.zero_grad(set_to_none=True)
                best = min(best, time.monotonic() - begin)
            else:
                print(
                    f"{autocast:9} {experts:11} {best:6.3f} s a step, loss {parts['loss']:.4f}",
                    flush=True,
                )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--data", type=Path, required=True, help="folder that build_corpora.py wrote"
    )
    parser.add_argument(
        "--out", type=Path, required=True, help="folder for the run; training resumes from it"
    )
    parser.add_argument("--recipe", type=Path, default=RECIPE)
    parser.add_argument(
        "--bench", action="store_true", help="time the experts implementations and stop"
    )
    options = parser.parse_args()
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
    keep_memory()
    recipe = yaml.safe_load(options.recipe.read_text(encoding="utf-8"))
    options.out.mkdir(parents=True, exist_ok=True)
    texts = documents(options.data, "train")
    tokenizer = make_tokenizer(texts, recipe, options.out / "tokenizer")
    streams = encode(texts, tokenizer, options.out / "tokens")
    train = recipe["train"]
    batches = Batches(streams, train["context"], train["sequences_per_step"], recipe["seed"])
    if options.bench:
        bench(recipe, tokenizer, batches)
        return
    model = new_model(recipe, tokenizer, train["experts"])
    sizes = {name: len(stream) for name, stream in streams.items()}
    parameters = sum(p.numel() for p in model.parameters())
    print(
        json.dumps({"parameters": parameters, "train_tokens": sizes, "total": sum(sizes.values())}),
        flush=True,
    )
    state = run_training(model, batches, recipe, options.out)
    print(json.dumps(state), flush=True)


if __name__ == "__main__":
    main()
