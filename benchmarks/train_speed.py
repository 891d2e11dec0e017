"""Training throughput against transformers' own step, as JSON.

The same model, the same tokens a step, the same optimizer (fused AdamW, clipping). Ours: the lab's
step, one thread for each micro-batch. Theirs: ``model(labels=…, output_router_logits=True)``,
backward, clip, step, with each of transformers' experts implementations (eager, grouped_mm), two
batch sizes, float32 and bfloat16 autocast, with all threads; once in a plain process and once with
the allocator setting that the lab uses, so that its share of the gain can be seen.

Every measurement is a fresh process. The first round tries everything; the best of theirs and the
best of ours then alternate for the rounds that count, and the ratio is that of their medians.

    python benchmarks/train_speed.py [--shape demo|wide] [--rounds 5] [--out FILE]
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

SHAPES: dict[str, dict[str, Any]] = {
    "demo": {
        "hidden_size": 192, "intermediate_size": 64, "num_hidden_layers": 6,
        "num_attention_heads": 3, "num_experts": 32, "top_k": 4, "initializer_range": 0.05,
    },
    "wide": {
        "hidden_size": 256, "intermediate_size": 128, "num_hidden_layers": 8,
        "num_attention_heads": 4, "num_experts": 32, "top_k": 4, "initializer_range": 0.05,
    },
}  # fmt: skip
CONTEXT, VOCABULARY, STEPS = 512, 8192, 4
OURS = [{"side": "ours", "sequences": s, "micro_batches": 2} for s in (4, 8)]
THEIRS = [
    {"side": "theirs", "experts": e, "sequences": s, "kept": kept, "autocast": False}
    for e in ("eager", "grouped_mm")
    for s in (8, 16)
    for kept in (False, True)
]
AUTOCAST = [
    {"side": "theirs", "experts": e, "sequences": 1, "kept": False, "autocast": True}
    for e in ("eager", "grouped_mm")
]


def recipe_of(shape: str, sequences: int, micro_batches: int) -> Any:
    from moescope.training.recipe import Recipe

    return Recipe.model_validate(
        {
            "name": shape,
            "data": {"train": "none", "context": CONTEXT},
            "model": SHAPES[shape],
            "balance": {"load_balancing": 0.01, "router_z": 0.001},
            "train": {
                "steps": 100,
                "sequences": sequences,
                "micro_batches": micro_batches,
                "precision": "float32",
            },
        }
    )


def ours(shape: str, case: dict[str, Any]) -> list[float]:
    """Seconds of each step of the lab."""
    import torch

    from moescope.memory import keep_memory
    from moescope.training.network import build_network
    from moescope.training.objective import Workers, balance_weights, run_step
    from moescope.training.optimizer import Optimizer

    keep_memory()
    recipe = recipe_of(shape, case["sequences"], case["micro_batches"])
    network = build_network(recipe, VOCABULARY, 0, torch.device("cpu"))
    network.model.train()
    optimizer = Optimizer(network.named_parameters(), recipe.train)
    workers = Workers(min(case["micro_batches"], torch.get_num_threads()))
    size = (case["micro_batches"], case["sequences"], CONTEXT + 1)
    tokens = torch.randint(0, VOCABULARY, size)
    seconds = []
    for step in range(STEPS + 2):
        began = time.perf_counter()
        done = run_step(network, workers, tokens, step, balance_weights(recipe, 0.0))
        with workers.single_threaded():
            optimizer.step(done.gradients, 1e-4)
        seconds.append(time.perf_counter() - began)
    workers.close()
    return seconds[2:]


def theirs(shape: str, case: dict[str, Any]) -> list[float]:
    """Seconds of each step with transformers alone."""
    import torch
    from transformers import AutoModelForCausalLM

    from moescope.memory import keep_memory
    from moescope.training.network import build_network

    if case["kept"]:
        keep_memory()
    config = build_network(recipe_of(shape, 1, 1), VOCABULARY, 0, torch.device("cpu")).model.config
    config.router_aux_loss_coef = 0.01
    config._attn_implementation = "sdpa"
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32).train()
    model.set_experts_implementation(case["experts"])
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)
    tokens = torch.randint(0, VOCABULARY, (case["sequences"], CONTEXT))
    seconds = []
    warm, steps = (0, 1) if case["autocast"] else (2, STEPS)
    for _ in range(warm + steps):
        began = time.perf_counter()
        with torch.autocast("cpu", torch.bfloat16, enabled=case["autocast"]):
            loss = model(tokens, labels=tokens, output_router_logits=True, use_cache=False).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        seconds.append(time.perf_counter() - began)
    return seconds[warm:]


def one(shape: str, case: dict[str, Any]) -> dict[str, Any]:
    """Measure in this process."""
    seconds = (ours if case["side"] == "ours" else theirs)(shape, case)
    tokens = case["sequences"] * case.get("micro_batches", 1) * CONTEXT
    rate = tokens / statistics.median(seconds)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return {**case, "tokens_per_second": rate, "peak_rss_mib": peak}


def fresh(shape: str, case: dict[str, Any]) -> dict[str, Any]:
    """Measure in a process of its own; the lab's threads sleep when idle, theirs spin (default)."""
    environment = dict(os.environ)
    environment.pop("OMP_NUM_THREADS", None)
    environment.pop("OMP_WAIT_POLICY", None)
    if case["side"] == "ours":
        environment["OMP_WAIT_POLICY"] = "PASSIVE"
    words = [sys.executable, __file__, "--shape", shape, "--one", json.dumps(case)]
    done = subprocess.run(words, env=environment, capture_output=True, text=True, check=True)
    result: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    print(json.dumps(result), file=sys.stderr, flush=True)
    return result


def gemm_peak() -> float:
    """float32 GFLOP/s of a square product, best of a few."""
    import torch

    a = torch.randn(2048, 2048)
    best = float("inf")
    for _ in range(6):
        began = time.perf_counter()
        torch.mm(a, a)
        best = min(best, time.perf_counter() - began)
    return float(2 * 2048**3 / best / 1e9)


def run(shape: str, rounds: int, autocast: bool) -> dict[str, Any]:
    tried = [fresh(shape, case) for case in OURS + THEIRS + (AUTOCAST if autocast else [])]
    best = {
        side: max((t for t in tried if t["side"] == side), key=lambda t: t["tokens_per_second"])
        for side in ("ours", "theirs")
    }
    plain = max(
        (t for t in tried if t["side"] == "theirs" and not t["kept"]),
        key=lambda t: t["tokens_per_second"],
    )
    cases = {"ours": best["ours"], "theirs": best["theirs"], "theirs_plain_process": plain}
    figures: dict[str, list[float]] = {name: [] for name in cases}
    for _ in range(rounds):
        for name, case in cases.items():
            figures[name].append(fresh(shape, case)["tokens_per_second"])
    medians = {name: statistics.median(values) for name, values in figures.items()}
    return {
        "shape": SHAPES[shape] | {"context": CONTEXT, "vocabulary": VOCABULARY},
        "tried_once": tried,
        "rounds": figures,
        "medians": medians,
        "ratio_to_best_of_theirs": medians["ours"] / medians["theirs"],
        "ratio_to_their_plain_process": medians["ours"] / medians["theirs_plain_process"],
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--shape", choices=(*SHAPES, "all"), default="all")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--no-autocast", action="store_true", help="leave bfloat16 autocast out")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--one", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        print(json.dumps(one(options.shape, json.loads(options.one))))
        return
    import torch
    import transformers

    from moescope.models.loading import has_bfloat16

    shapes = list(SHAPES) if options.shape == "all" else [options.shape]
    result = {
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "processor": platform.processor() or platform.machine(),
        "threads": torch.get_num_threads(),
        "bfloat16_arithmetic": has_bfloat16(),
        "float32_gemm_gflops": gemm_peak(),
        "shapes": {s: run(s, options.rounds, not options.no_autocast) for s in shapes},
    }
    text = json.dumps(result, indent=1)
    if options.out:
        options.out.write_text(text + "\n", encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
