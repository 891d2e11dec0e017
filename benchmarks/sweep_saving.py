"""What a sweep over the experts of a layer costs beside naive full passes, as JSON.

The shipped model on the shipped samples. Ours: `sweep_experts` of one layer, its plain pass, checks
and scores included. Naive: for every expert of that layer a forward pass of transformers over the
same batches with the expert zeroed, logits at every token, and the same scoring; one plain pass
more. Both run in this process by turns for the rounds that count; medians of wall and of processor
seconds, and the largest difference between the two results (nats per token, over all text).

    python benchmarks/sweep_saving.py [--layers 3,5] [--rounds 3] [--tokens 200] [--out FILE]
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")


def timed(run: Callable[[], Any]) -> tuple[Any, dict[str, float]]:
    wall, processor = time.perf_counter(), time.process_time()
    made = run()
    return made, {
        "wall": time.perf_counter() - wall,
        "processor": time.process_time() - processor,
    }


def ours(loaded: Any, windows: Sequence[Any], layer: int) -> tuple[list[float], dict[str, Any]]:
    """Mean ΔCE of every expert, and what was computed."""
    from moescope.intervene import sweep_experts

    made = sweep_experts(loaded, windows, [layer])
    rows = sorted(made.ranking(), key=lambda r: r["expert"])
    return [r["ce_change"] for r in rows], made.saving.to_dict()


def naive(loaded: Any, windows: Sequence[Any], layer: int) -> list[float]:
    """Mean ΔCE of every expert, by whole passes."""
    import torch

    from moescope.intervene import edited, zero
    from moescope.measure.head import scored_tokens
    from moescope.measure.scoring import PlainScores, compare
    from moescope.measure.trials import batch_budget
    from moescope.measure.windows import window_batches

    experts = next(m for m in loaded.anatomy.layers if m.layer_idx == layer).num_experts
    sums, tokens = [0.0] * experts, 0
    with torch.inference_mode():
        for batch in window_batches(windows, batch_budget(loaded)):
            ids = torch.as_tensor(batch.token_ids)
            call = {
                "input_ids": ids,
                "attention_mask": torch.as_tensor(batch.attention_mask).long(),
            }
            rows = torch.as_tensor(scored_tokens(batch))
            logits = loaded.model(**call, use_cache=False).logits
            target = ids.roll(-1, dims=1).reshape(-1)[rows]
            plain = PlainScores(logits.reshape(-1, logits.shape[-1])[rows], target)
            tokens += len(rows)
            for expert in range(experts):
                with edited(loaded, zero(f"L{layer}E{expert}")):
                    logits = loaded.model(**call, use_cache=False).logits
                damage = compare(plain, logits.reshape(-1, logits.shape[-1])[rows])
                sums[expert] += float(damage.ce_change.sum())
    return [s / tokens for s in sums]


def run(loaded: Any, windows: Sequence[Any], layer: int, rounds: int) -> dict[str, Any]:
    seconds: dict[str, list[dict[str, float]]] = {"ours": [], "naive": []}
    difference, saving = 0.0, {}
    for _ in range(rounds):
        (quick, saving), spent = timed(lambda: ours(loaded, windows, layer))
        seconds["ours"].append(spent)
        slow, spent = timed(lambda: naive(loaded, windows, layer))
        seconds["naive"].append(spent)
        difference = max(abs(a - b) for a, b in zip(quick, slow, strict=True))
    medians = {
        side: {k: statistics.median(s[k] for s in spent) for k in ("wall", "processor")}
        for side, spent in seconds.items()
    }
    return {
        "layer": layer,
        "edits": saving["trials"],
        "layer_share": saving["layer_share"],
        "head_share": saving["head_tokens"] / saving["head_tokens_naive"],
        "seconds": seconds,
        "medians": medians,
        "times_faster_wall": medians["naive"]["wall"] / medians["ours"]["wall"],
        "times_faster_processor": medians["naive"]["processor"] / medians["ours"]["processor"],
        "largest_difference": difference,
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--layers", default="3,5")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--tokens", type=int, default=200, help="of each domain")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    import torch
    import transformers

    from moescope.corpus import CorpusSpec
    from moescope.demo import MODEL, SAMPLES
    from moescope.measure.windows import choose_windows
    from moescope.models import ModelSpec, load_model

    loaded = load_model(ModelSpec(str(MODEL)))
    windows = choose_windows(
        loaded,
        CorpusSpec(path=str(SAMPLES)),
        tokens_per_domain=options.tokens,
        window_tokens=256,
    )
    result = {
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "processor": platform.processor() or platform.machine(),
        "threads": torch.get_num_threads(),
        "load_average": os.getloadavg(),
        "tokens": sum(w.num_tokens for w in windows),
        "decoder_layers": loaded.anatomy.num_decoder_layers,
        "layers": [
            run(loaded, windows, int(layer), options.rounds) for layer in options.layers.split(",")
        ],
    }
    text = json.dumps(result, indent=1)
    if options.out:
        options.out.write_text(text + "\n", encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
