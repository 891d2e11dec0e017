"""What a trace takes in memory: under a promise, with one huge record, with very many domains.

    python benchmarks/promise.py memory --shape small --layers 16 --tokens 200000 --memory 1GB
    python benchmarks/promise.py memory --shape olmoe --layers 6 --tokens 10000 --memory 3GB
    python benchmarks/promise.py record --megabytes 50 --limit 20000
    python benchmarks/promise.py domains --count 1000

Each prints one line of JSON. ``memory`` says the peak of each stage: the resident set is reset when
one ends. ``small`` is OLMoE with a hidden size of 512, ``olmoe`` OLMoE-1B-7B's own width; weights
are random, text is words drawn by Zipf's law, sums, sample and predictions are kept.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

STAGES: dict[str, int] = {}


def status(name: str) -> int:
    text = Path("/proc/self/status").read_text(encoding="utf-8")
    return int(re.search(rf"{name}:\s+(\d+) kB", text)[1]) * 1024


def stage(name: str) -> None:
    """Note the peak since the last stage ended."""
    STAGES[name] = max(STAGES.get(name, 0), status("VmHWM"))
    Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")


def noted(owner: Any, method: str, before: str | None, after: str) -> None:
    stock = getattr(owner, method)

    def run(*args: Any, **named: Any) -> Any:
        if before:
            stage(before)
        result = stock(*args, **named)
        stage(after)
        return result

    setattr(owner, method, run)


def memory(given: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """A streamed trace under a promise, in a process of its own."""
    import checkpoints
    import numpy as np
    from transformers import AutoTokenizer

    from moescope.demo import MODEL

    if given.shape == "small":
        checkpoints.SHAPES["olmoe"] |= {
            "hidden_size": 512, "intermediate_size": 256, "num_attention_heads": 8,
            "num_key_value_heads": 8, "vocab_size": 8192,
        }  # fmt: skip
    checkpoints.write_checkpoint(folder / "model", "olmoe", given.layers)
    tokenizer, rng = AutoTokenizer.from_pretrained(MODEL), np.random.default_rng(0)
    odds = 1 / (2.7 + np.arange(7700))
    with (folder / "text.jsonl").open("w", encoding="utf-8") as file:
        for n in range(given.tokens // 500):
            ids = 300 + rng.choice(7700, 620, p=odds / odds.sum())
            row = {"domain": f"domain{n % given.domains}", "text": tokenizer.decode(ids.tolist())}
            file.write(json.dumps(row) + "\n")
    command = [sys.executable, __file__, "memory", "--inside", str(folder), "--memory"]
    done = subprocess.run([*command, given.memory], check=True, stdout=subprocess.PIPE, text=True)
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def inside(folder: Path, promise: str) -> dict[str, Any]:
    """The trace of `memory`."""
    from moescope.corpus import CorpusSpec
    from moescope.models import ModelSpec, open_model
    from moescope.run.options import TraceOptions
    from moescope.trace import record, streamed, trace

    noted(streamed.StreamedEngine, "_run_layer", "between layers", "layer")
    noted(record, "finish", "record", "finish")
    began = time.perf_counter()
    model = ModelSpec(str(folder / "model"))
    loaded = open_model(model, engine="streamed", memory=promise, window=512)
    stage("open")
    text = CorpusSpec(path=str(folder / "text.jsonl"))
    run = trace(loaded, text, folder / "run", TraceOptions(context=512))
    stage("end")
    manifest = json.loads((run / "manifest.json").read_text(encoding="utf-8"))
    need = loaded.streamed.need
    return {
        "tokens": manifest["coverage"]["tokens_per_router"],
        "seconds": time.perf_counter() - began,
        "dtype": loaded.dtype,
        "promise": promise,
        "reckoned_bytes": need.total,
        "sums_bytes": need.sums,
        "batch_tokens": need.batch_tokens,
        "state_bytes": (run / manifest["state"]["file"]).stat().st_size,
        "peak_rss_bytes": max(STAGES.values()),
        "stages": STAGES,
    }


def sample_text() -> str:
    from moescope.demo import SAMPLES

    files = sorted(SAMPLES.glob("*.jsonl"))
    lines = (line for file in files for line in file.read_text(encoding="utf-8").splitlines())
    return " ".join(json.loads(line)["text"] for line in lines)


def resident(text: Path, folder: Path, **options: Any) -> dict[str, Any]:
    from moescope.corpus import CorpusSpec
    from moescope.demo import MODEL
    from moescope.models import ModelSpec, load_model
    from moescope.run.options import TraceOptions
    from moescope.trace import trace

    loaded = load_model(ModelSpec(str(MODEL)))
    stage("before")
    began = time.perf_counter()
    trace(loaded, CorpusSpec(path=str(text)), folder / "run", TraceOptions(**options))
    stage("trace")
    return {"seconds": time.perf_counter() - began, "peak_rss_bytes": STAGES["trace"]}


def record(given: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """The shipped model on one huge record and a small one."""
    text, size = sample_text(), int(given.megabytes * 1e6)
    rows = [(text * (size // len(text) + 1))[:size], text[:4000]]
    with (folder / "text.jsonl").open("w", encoding="utf-8") as file:
        for n, row in enumerate(rows):
            file.write(json.dumps({"domain": f"d{n}", "text": row}) + "\n")
    del rows, row, text
    options = {"limit": given.limit, "context": 512, "batch_tokens": 2048}
    return {"megabytes": given.megabytes, **resident(folder / "text.jsonl", folder, **options)}


def domains(given: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """The shipped model on domains of six short texts each: every table, and the page."""
    from moescope.metrics.runs import open_run, table_names
    from moescope.report import build_report

    words = sample_text().split()
    with (folder / "text.jsonl").open("w", encoding="utf-8") as file:
        for n in range(6 * given.count):
            text = " ".join(words[(8 * n + k) % len(words)] for k in range(8))
            file.write(json.dumps({"domain": f"dom{n // 6}", "text": text}) + "\n")
    traced = resident(folder / "text.jsonl", folder)
    opened, tables = open_run(folder / "run"), {}
    for name in table_names():
        began = time.perf_counter()
        rows = opened.table(name).num_rows
        stage(name)
        tables[name] = {
            "seconds": time.perf_counter() - began, "rows": rows, "peak_rss_bytes": STAGES[name],
        }  # fmt: skip
    began = time.perf_counter()
    page = build_report(opened)
    stage("report")
    return {
        "domains": given.count,
        "trace": traced,
        "tables": tables,
        "report": {
            "seconds": time.perf_counter() - began, "bytes": page.stat().st_size,
            "peak_rss_bytes": STAGES["report"],
        },
    }  # fmt: skip


CASES = {"memory": memory, "record": record, "domains": domains}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("case", choices=CASES)
    parser.add_argument("--shape", choices=("small", "olmoe"), default="small")
    parser.add_argument("--layers", type=int, default=16)
    parser.add_argument("--tokens", type=int, default=10_000)
    parser.add_argument("--domains", type=int, default=4)
    parser.add_argument("--memory", default="1GB")
    parser.add_argument("--megabytes", type=float, default=5)
    parser.add_argument("--limit", type=int)
    parser.add_argument("--count", type=int, default=1000)
    parser.add_argument("--folder", type=Path, help="where files are written for a while")
    parser.add_argument("--inside", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.inside:
        print(json.dumps(inside(given.inside, given.memory)))
        return
    with tempfile.TemporaryDirectory(dir=given.folder) as folder:
        print(json.dumps(CASES[given.case](given, Path(folder))))


if __name__ == "__main__":
    main()
