"""Tokens per second and peak memory of a trace, as JSON.

Two cases, each in a fresh process so that its peak memory is its own:

- ``demo``: the shipped model on the shipped domain samples, limited;
- ``olmoe-pair``: two decoder layers of OLMoE-1B-7B's real width (D 2048, F 1024, 64 experts, 8 per
  token) with random weights, in whichever of float32 and bfloat16 this processor multiplies
  faster, on 8 windows of 512 tokens, beside transformers' own forward pass with
  output_router_logits (without the LM head, like ours) on the same batch in the same process.

    python benchmarks/trace_speed.py [--case demo|olmoe-pair] [--repeats 3] [--out FILE]
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
import tempfile
import time
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

CASES = ("demo", "olmoe-pair")


def demo(repeats: int) -> dict[str, Any]:
    from moescope.corpus import CorpusSpec
    from moescope.demo import MODEL, SAMPLES
    from moescope.metrics.runs import open_run
    from moescope.models import ModelSpec, load_model
    from moescope.trace import TraceOptions, trace

    loaded = load_model(ModelSpec(str(MODEL)))
    seconds, tokens, tables = [], 0, []
    for _ in range(repeats):
        with tempfile.TemporaryDirectory() as folder:
            began = time.perf_counter()
            spec = CorpusSpec(path=str(SAMPLES))
            path = trace(loaded, spec, Path(folder) / "run", TraceOptions(limit=4000, context=512))
            seconds.append(time.perf_counter() - began)
            run = open_run(path)
            tokens = run.manifest.coverage["tokens_per_router"]
            began = time.perf_counter()
            run.compute_all()
            tables.append(time.perf_counter() - began)
    return {
        "tokens": tokens,
        "trace_seconds": seconds,
        "tokens_per_second": tokens / statistics.median(seconds),
        "tables_seconds": statistics.median(tables),
    }


def olmoe_pair(repeats: int) -> dict[str, Any]:
    import numpy as np
    import torch
    from transformers import AutoModelForCausalLM, OlmoeConfig

    from moescope.corpus import TokenizedDocument
    from moescope.corpus.tokenize import Sequence
    from moescope.models import ModelSpec, find_anatomy
    from moescope.models.loading import LoadedModel
    from moescope.trace import TraceOptions
    from moescope.trace.aggregates import AggregateShape
    from moescope.trace.engine import ResidentEngine
    from moescope.trace.pool import PoolRecorder
    from moescope.trace.state import RunState

    config = OlmoeConfig(
        vocab_size=50304, hidden_size=2048, intermediate_size=1024, num_hidden_layers=2,
        num_attention_heads=16, num_experts=64, num_experts_per_tok=8, pad_token_id=1,
    )  # fmt: skip
    torch.manual_seed(0)
    peaks = {name: gemm_gflops(name) for name in ("float32", "bfloat16")}
    dtype = max(peaks, key=lambda name: peaks[name])
    model = AutoModelForCausalLM.from_config(config, dtype=getattr(torch, dtype)).eval()
    anatomy = find_anatomy(model, config)
    spec = ModelSpec("random")
    loaded = LoadedModel(spec, model, _Pad(), anatomy, "", "", "", dtype, dtype, "cpu", None)
    rng = np.random.default_rng(0)
    documents = []
    for i in range(8):
        ids = rng.integers(0, 50000, 512).astype(np.int32)
        window = Sequence(i, 0, 0, ids, np.ones(512, np.bool_))
        documents.append(TokenizedDocument(i, f"d{i}", f"domain{i % 4}", 512, 0, [window]))
    tokens = 512 * len(documents)
    shape = AggregateShape(anatomy.layer_numbers, (64, 64), (8, 8))
    engine = ResidentEngine(loaded, anatomy.layers, predictions=False)
    options = TraceOptions(predictions=False)

    def ours() -> None:
        recorder = PoolRecorder(engine, anatomy.layers, options, 1, lambda _: None)
        recorder.record(documents, RunState(shape, 8192, 0))

    batch = torch.as_tensor(np.stack([d.sequences[0].token_ids for d in documents])).long()

    def theirs() -> None:
        with torch.inference_mode():
            model.model(input_ids=batch, output_router_logits=True, use_cache=False)

    times: dict[str, list[float]] = {"moescope": [], "transformers": []}
    for _ in range(repeats + 1):
        for name, run in (("moescope", ours), ("transformers", theirs)):
            began = time.perf_counter()
            run()
            times[name].append(time.perf_counter() - began)
    medians = {name: statistics.median(values[1:]) for name, values in times.items()}
    return {
        "tokens": tokens,
        "seconds": {name: values[1:] for name, values in times.items()},
        "tokens_per_second": {name: tokens / m for name, m in medians.items()},
        "ratio_to_transformers": medians["transformers"] / medians["moescope"],
        "dtype": dtype,
        "gemm_gflops": peaks,
    }


def gemm_gflops(dtype: str, size: int = 1024, repeats: int = 3) -> float:
    """Median speed of a square matrix product, after one to warm up."""
    import torch

    a, b = (torch.randn(size, size).to(getattr(torch, dtype)) for _ in range(2))
    rates = []
    for _ in range(repeats + 1):
        began = time.perf_counter()
        a @ b
        rates.append(2 * size**3 / (time.perf_counter() - began) / 1e9)
    return statistics.median(rates[1:])


class _Pad:
    pad_token_id = 1


def run_case(case: str, repeats: int) -> dict[str, Any]:
    result = demo(repeats) if case == "demo" else olmoe_pair(repeats)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return {"case": case, **result, "peak_rss_mib": round(peak)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--case", choices=CASES)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    if given.case:
        print(json.dumps(run_case(given.case, given.repeats)))
        return
    results = []
    for case in CASES:
        command = [sys.executable, __file__, "--case", case, "--repeats", str(given.repeats)]
        done = subprocess.run(command, check=True, capture_output=True, text=True)
        results.append(json.loads(done.stdout.splitlines()[-1]))
    report = {
        "machine": {"processor": platform.processor(), "cores": os.cpu_count()},
        "results": results,
    }
    text = json.dumps(report, indent=1)
    print(text)
    if given.out:
        given.out.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
