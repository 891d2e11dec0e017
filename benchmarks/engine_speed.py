"""How fast a trace goes and what memory it takes, as JSON: medians and ratios of one run.

Cases, each in a fresh process, so that its peak memory is its own:

- ``peak``: square matrix products in float32 and bfloat16. Shares of the peak are of products in
  the dtype of the model, timed in the same minutes: the speed of a shared processor changes.
- ``resident``: two decoder layers at OLMoE-1B-7B's width with random weights, 8,192 tokens, beside
  transformers' own forward with ``output_router_logits`` (eager and grouped_mm, several batch
  sizes, no LM head on either side); and for short prompts, which scripts pass one at a time.
- ``streamed``: a whole OLMoE-1B-7B (16 layers, 13.8 GB, random weights) written to disk and traced
  by the streamed engine under a promise of 3 GB.
- ``mixtral``: Mixtral-8x7B's width, as many layers as asked for, streamed.
- ``demo``: the shipped model on its samples, with predictions; tables; bytes of a run.
- ``recording``: what sums cost beside the model, at 45 layers of 128 experts, on one core.
- ``growth``: time and peak memory over tokens, experts and layers.

    python benchmarks/engine_speed.py [--case NAME] [--repeats 3] [--folder DIR] [--out FILE]
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

TOKENS, WINDOW, PROMPT = 8192, 512, 24


def peak(given: argparse.Namespace) -> dict[str, Any]:
    """GFLOP/s of matrix products."""
    import torch

    rates: dict[str, float] = {}
    for dtype in ("float32", "bfloat16"):
        for size in (1024, 2048):
            a, b = (torch.randn(size, size).to(getattr(torch, dtype)) for _ in range(2))
            first = clocked(lambda a=a, b=b: a @ b)
            emulated = first > 1  # this processor has no such arithmetic: once is enough
            again = 1 if emulated else 3 + 2 * given.repeats
            seconds = [clocked(lambda a=a, b=b: a @ b) for _ in range(again)]
            rates[f"{dtype}_{size}"] = 2 * size**3 / statistics.median(seconds) / 1e9
            if emulated:
                break
    return {"gemm_gflops": rates, "peak_gflops": max(rates.values())}


def resident(given: argparse.Namespace) -> dict[str, Any]:
    """Two layers, in memory, against transformers' own forward."""
    import torch

    torch.manual_seed(0)
    reference = peak(given)
    dtype = max(reference["gemm_gflops"], key=reference["gemm_gflops"].get).split("_")[0]
    model, loaded = olmoe_layers(2, dtype)
    long, short = draw_ids(TOKENS // WINDOW, WINDOW), draw_ids(32, PROMPT)
    best = best_of_theirs(model, long, (1, 4, 16))
    best_short = best_of_theirs(model, short, (1,))
    side = torch.randn(2048, 2048).to(getattr(torch, dtype))

    def products() -> None:
        for _ in range(30):
            side @ side

    contests = {
        "long": (
            {
                "moescope, whole layers": lambda: ours(loaded, long, whole=True),
                "moescope, routing only": lambda: ours(loaded, long, whole=False),
                "transformers": lambda: theirs(model, long, best["sequences"]),
                "matrix products": products,
            },
            long.numel(),
            best,
        ),
        "short": (
            {
                "moescope": lambda: ours(loaded, short, whole=True),
                "transformers, one at a time": lambda: theirs(model, short, 1),
            },
            short.numel(),
            best_short,
        ),
    }
    result: dict[str, Any] = {**reference, "dtype": dtype, "best_of_transformers": best}
    products_took = 0.0
    for name, (runs, tokens, how) in contests.items():
        model.set_experts_implementation(how["experts"])
        seconds = by_turns(runs, given.repeats)
        medians = {who: statistics.median(values) for who, values in seconds.items()}
        products_took = medians.pop("matrix products", products_took)
        result[name] = {
            "tokens": tokens,
            "transformers_by": how["experts"],
            "seconds": seconds,
            "tokens_per_second": {who: tokens / m for who, m in medians.items()},
            "ratio_to_transformers": {
                who: medians[next(w for w in medians if w.startswith("trans"))] / m
                for who, m in medians.items()
            },
        }
    work = flops(2, 2, WINDOW)
    whole = result["long"]["tokens_per_second"]
    result["gflops"] = {
        "moescope, whole layers": work * whole["moescope, whole layers"] / 1e9,
        "moescope, routing only": flops(2, 1, WINDOW) * whole["moescope, routing only"] / 1e9,
        "transformers": work * whole["transformers"] / 1e9,
    }
    # of the same minutes: the processor's speed changes
    result["peak_gflops"] = 30 * 2 * 2048**3 / products_took / 1e9
    result["share_of_peak"] = {
        who: rate / result["peak_gflops"] for who, rate in result["gflops"].items()
    }
    return result


def streamed(given: argparse.Namespace) -> dict[str, Any]:
    """OLMoE-1B-7B from disk under a promise of memory."""
    return from_disk(given, "olmoe", 16, TOKENS, "3GB")


def mixtral(given: argparse.Namespace) -> dict[str, Any]:
    """Layers of Mixtral-8x7B from disk."""
    return from_disk(given, "mixtral", given.mixtral_layers, 2048, None)


def from_disk(
    given: argparse.Namespace, name: str, num_layers: int, tokens: int, memory: str | None
) -> dict[str, Any]:
    from checkpoints import write_checkpoint

    from moescope.demo import SAMPLES

    with tempfile.TemporaryDirectory(dir=given.folder) as folder:
        model = Path(folder) / name
        began = time.perf_counter()
        size = write_checkpoint(model, name, num_layers)
        wrote = time.perf_counter() - began
        files = sorted(SAMPLES.glob("*.jsonl"))
        each = -(-tokens // len(files) // WINDOW) * WINDOW
        found = []
        for n in range(given.repeats):
            forget(model)
            command = [
                sys.executable, "-c", TRACE, str(model), str(SAMPLES), f"{folder}/run{n}",
                str(each), memory or "",
            ]  # fmt: skip
            done = subprocess.run(command, check=True, capture_output=True, text=True)
            found.append(json.loads(done.stdout.splitlines()[-1]))
            shutil.rmtree(f"{folder}/run{n}")
    seconds = statistics.median(f["seconds"] for f in found)
    fastest = statistics.median(g for f in found for g in f["peak_gflops"])
    opened = statistics.median(f["seconds_to_open"] for f in found)
    traced = found[0]["tokens"]
    experts = {"olmoe": 64, "mixtral": 8}[name]
    whole = found[0]["tokens_of_first_batch"]
    work = flops(num_layers, num_layers - 1, WINDOW, name) * (traced - whole)
    work += flops(num_layers, num_layers, WINDOW, name) * whole
    return {
        "layers": num_layers,
        "experts": experts,
        "checkpoint_bytes": size,
        "seconds_to_write_it": wrote,
        "promise": memory,
        "runs": found,
        "tokens": traced,
        "tokens_per_second": traced / seconds,
        "gflops": work / seconds / 1e9,
        "peak_gflops": fastest,
        "share_of_peak": work / seconds / 1e9 / fastest,
        "share_of_peak_with_opening": work / (seconds + opened) / 1e9 / fastest,
        "peak_rss_bytes": max(f["peak_rss_bytes"] for f in found),
    }


TRACE = '''
import json, re, statistics, sys, time
from pathlib import Path
import torch
from moescope.corpus import CorpusSpec
from moescope.models import ModelSpec, open_model
from moescope.models.streaming import StreamedModel
from moescope.run.options import TraceOptions
from moescope.trace import trace
from moescope.trace.streamed import StreamedEngine

rates, spent, read = [], 0.0, StreamedModel.load_layer
sides, first_batch, runs = [], [], StreamedEngine.run

def timed(self, index):
    """The peak where and when the trace runs: products before each layer, their time left out."""
    global spent
    read(self, index)
    began, seconds = time.perf_counter(), []
    for _ in range(5):
        started = time.perf_counter()
        sides[0] @ sides[1]
        seconds.append(time.perf_counter() - started)
    rates.append(2 * 2048**3 / statistics.median(seconds) / 1e9)
    spent += time.perf_counter() - began

def listed(self, batches):
    """Where only routing is wanted, the first batch runs through the last layer's experts too."""
    batches = list(batches)
    first_batch.append(int(batches[0].attention_mask.sum()))
    return runs(self, batches)

StreamedModel.load_layer = timed
StreamedEngine.run = listed
model, corpus, run, limit, memory = sys.argv[1:]
began = time.perf_counter()
loaded = open_model(ModelSpec(model), engine="streamed", memory=memory or None)
opened = time.perf_counter() - began
sides += [torch.randn(2048, 2048).to(getattr(torch, loaded.dtype)) for _ in range(2)]
options = TraceOptions(limit=int(limit), context=512, predictions=False)
began = time.perf_counter()
trace(loaded, CorpusSpec(path=corpus), Path(run), options)
seconds = time.perf_counter() - began - spent
manifest = json.loads((Path(run) / "manifest.json").read_text())
peak = int(re.search(r"VmHWM:\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1]) * 1024
need = loaded.streamed.need
print(json.dumps({"tokens": manifest["coverage"]["tokens_per_router"], "seconds": seconds,
                  "seconds_to_open": opened, "peak_rss_bytes": peak, "reckoned_bytes": need.total,
                  "batch_tokens": need.batch_tokens, "dtype": loaded.dtype,
                  "tokens_of_first_batch": first_batch[0], "peak_gflops": rates}))
'''


def demo(given: argparse.Namespace) -> dict[str, Any]:
    """The shipped model, with predictions, tables, and the size of what is kept."""
    from moescope.corpus import CorpusSpec
    from moescope.demo import MODEL, SAMPLES
    from moescope.metrics.runs import open_run
    from moescope.models import ModelSpec, load_model
    from moescope.run.options import TraceOptions
    from moescope.trace import trace

    loaded, corpus = load_model(ModelSpec(str(MODEL))), CorpusSpec(path=str(SAMPLES))
    seconds, tables, sizes, tokens = [], [], {}, 0
    with tempfile.TemporaryDirectory() as folder:
        for n in range(given.repeats):
            options = TraceOptions(limit=4000, context=WINDOW)
            began = time.perf_counter()
            path = trace(loaded, corpus, Path(folder) / f"run{n}", options)
            seconds.append(time.perf_counter() - began)
            run = open_run(path)
            tokens = run.manifest.coverage["tokens_per_router"]
            began = time.perf_counter()
            run.compute_all()
            tables.append(time.perf_counter() - began)
        for keep in ("aggregates", "sample", "all"):
            options = TraceOptions(limit=4000, context=WINDOW, keep=keep)
            path = trace(loaded, corpus, Path(folder) / keep, options)
            sizes[keep] = sum(p.stat().st_size for p in path.rglob("*") if p.is_file())
    return {
        "tokens": tokens,
        "seconds": seconds,
        "tokens_per_second": tokens / statistics.median(seconds),
        "tables_seconds": statistics.median(tables),
        "run_bytes": sizes,
        "bytes_per_token": {keep: size / tokens for keep, size in sizes.items()},
    }


def recording(given: argparse.Namespace) -> dict[str, Any]:
    """Routing as captured, of 45 layers of 128 experts, turned into sums; no model runs."""
    import numpy as np
    import torch

    from moescope.run.aggregates import AggregateShape, PhaseAggregates
    from moescope.run.facts import TokenBlock
    from moescope.trace.facts import layer_facts

    torch.set_num_threads(1)
    layers, experts, top_k, tokens, domains = 45, 128, 8, 2048, 10
    maker = torch.Generator().manual_seed(0)
    routing = []
    for _ in range(layers):
        logits = 2 * torch.randn(tokens, experts, generator=maker)
        weights, ids = logits.softmax(-1).topk(top_k)
        routing.append((logits, ids, weights))
    row, none = np.arange(tokens), np.full(tokens, -1)
    doc = row // 256
    ids = np.random.default_rng(0).integers(0, 50_000, tokens)
    block = TokenBlock(
        doc=doc, cluster=doc, domain=doc % domains, window=0 * row, pos=row % 256, token_id=ids,
        next_id=np.roll(ids, -1), pred_id=none, nll=np.full(tokens, np.nan, np.float32),
        follows=row % 256 > 0, last=row % 256 == 255,
    )  # fmt: skip
    shape = AggregateShape(
        tuple(range(layers)), (experts,) * layers, (top_k,) * layers, token_budget=1000
    )
    seconds: dict[str, list[float]] = {"scalars of each token": [], "sums": []}
    sums = PhaseAggregates(shape)
    sums.grow(len(set(doc)), domains)
    for _ in range(4 + given.repeats):  # by then the budget of tokens with their ids is spent
        began = time.perf_counter()
        facts = [layer_facts(*one, "softmax") for one in routing]
        made = time.perf_counter()
        sums.add(block, facts)
        seconds["scalars of each token"].append(made - began)
        seconds["sums"].append(time.perf_counter() - made)
    medians = {what: statistics.median(s[4:]) for what, s in seconds.items()}
    return {
        "layers": layers,
        "experts": experts,
        "top_k": top_k,
        "tokens": tokens,
        "seconds": medians,
        "tokens_per_second_of_one_core": tokens / sum(medians.values()),
    }


def growth(given: argparse.Namespace) -> dict[str, Any]:
    """Time and memory as one thing grows; each point is a process."""
    points: dict[str, list[dict[str, Any]]] = {}
    base = {"tokens": 25_000, "experts": 32, "layers": 6, "token_budget": 250_000}
    lengths = [10_000, 25_000, 50_000, 100_000, 200_000]
    axes = {
        "tokens": [{"tokens": n} for n in lengths],
        "tokens, budget spent": [{"tokens": n, "token_budget": 1000} for n in lengths],
        "experts": [{"experts": n} for n in (8, 16, 32, 64, 128, 256)],
        "layers": [{"layers": n} for n in (2, 4, 8, 16)],
    }
    for axis, changes in axes.items():
        for change in changes:
            size = base | change
            command = [sys.executable, __file__, "--point", json.dumps(size)]
            found = [
                json.loads(
                    subprocess.run(command, check=True, capture_output=True, text=True)
                    .stdout.splitlines()[-1]
                )
                for _ in range(given.repeats)
            ]  # fmt: skip
            points.setdefault(axis, []).append(
                {
                    **size,
                    "counted": found[0]["tokens"],
                    "seconds": statistics.median(f["seconds"] for f in found),
                    "peak_rss_bytes": statistics.median(f["peak_rss_bytes"] for f in found),
                }
            )
    return {"aggregates": points}


def point(size: dict[str, int]) -> dict[str, Any]:
    """One point: a small OLMoE with random weights on words drawn by Zipf's law, sums only."""
    import numpy as np
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, OlmoeConfig

    from moescope.corpus import CorpusSpec
    from moescope.demo import MODEL
    from moescope.models import ModelSpec, load_model
    from moescope.run.options import TraceOptions
    from moescope.trace import trace

    torch.manual_seed(0)
    config = OlmoeConfig(
        vocab_size=8192, hidden_size=192, intermediate_size=64, num_attention_heads=3,
        num_hidden_layers=size["layers"], num_experts=size["experts"], num_experts_per_tok=4,
        pad_token_id=0, bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        place, tokenizer = Path(folder), AutoTokenizer.from_pretrained(MODEL)
        AutoModelForCausalLM.from_config(config).save_pretrained(place / "model")
        tokenizer.save_pretrained(place / "model")
        rng = np.random.default_rng(0)
        odds = 1 / (2.7 + np.arange(7700))
        odds /= odds.sum()
        with (place / "text.jsonl").open("w", encoding="utf-8") as file:
            for n in range(size["tokens"] // 500):  # about as many tokens; the run says how many
                text = tokenizer.decode((300 + rng.choice(7700, 400, p=odds)).tolist())
                row = {"id": f"d{n}", "domain": f"domain{n % 4}", "text": text}
                file.write(json.dumps(row) + "\n")
        loaded = load_model(ModelSpec(str(place / "model")))
        options = TraceOptions(
            keep="aggregates", context=WINDOW, predictions=False, token_budget=size["token_budget"]
        )
        began = time.perf_counter()
        path = trace(loaded, CorpusSpec(path=str(place / "text.jsonl")), place / "run", options)
        seconds = time.perf_counter() - began
        manifest = json.loads((path / "manifest.json").read_text())
    return {
        "tokens": manifest["coverage"]["tokens_per_router"],
        "seconds": seconds,
        "peak_rss_bytes": peak_rss(),
    }


# -- both sides of the contest


def olmoe_layers(num_layers: int, dtype: str) -> tuple[Any, Any]:
    """A model with OLMoE-1B-7B's width, and as moescope holds it."""
    import torch
    from checkpoints import config_of
    from transformers import AutoModelForCausalLM

    from moescope.models import ModelSpec, find_anatomy
    from moescope.models.loading import LoadedModel

    config = config_of("olmoe", num_hidden_layers=num_layers)
    model = AutoModelForCausalLM.from_config(config, dtype=getattr(torch, dtype)).eval()
    anatomy = find_anatomy(model, config)
    spec = ModelSpec("random")
    return model, LoadedModel(spec, model, _Pad(), anatomy, "", "", "", dtype, dtype, "cpu", None)


class _Pad:
    pad_token_id = 0


def draw_ids(sequences: int, length: int) -> Any:
    import torch

    return torch.randint(3, 50_000, (sequences, length), generator=torch.Generator().manual_seed(1))


def ours(loaded: Any, ids: Any, *, whole: bool) -> None:
    """Trace these sequences: the model, the recording, the sums."""
    import numpy as np

    from moescope.corpus import TokenizedDocument
    from moescope.corpus.tokenize import Sequence
    from moescope.run.aggregates import AggregateShape
    from moescope.run.options import TraceOptions
    from moescope.run.state import RunState
    from moescope.trace.engine import ResidentEngine
    from moescope.trace.pool import PoolRecorder

    documents = []
    for i, row in enumerate(ids.numpy().astype(np.int32)):
        window = Sequence(i, 0, 0, row, np.ones(len(row), np.bool_))
        documents.append(TokenizedDocument(i, f"d{i}", f"domain{i % 4}", len(row), 0, [window]))
    layers = loaded.anatomy.layers
    shape = AggregateShape(loaded.anatomy.layer_numbers, (64,) * len(layers), (8,) * len(layers))
    engine = ResidentEngine(loaded, layers, predictions=False)
    engine._checked = not whole  # the first batch runs whole, and here there is only one
    recorder = PoolRecorder(engine, layers, TraceOptions(predictions=False), 0, lambda _: None)
    recorder.record(documents, RunState(shape, 8192, 0))


def theirs(model: Any, ids: Any, sequences: int) -> None:
    """Transformers' forward with the routers' logits, without the LM head."""
    import torch

    with torch.inference_mode():
        for part in ids.split(sequences):
            model.model(input_ids=part, output_router_logits=True, use_cache=False)


def best_of_theirs(model: Any, ids: Any, sizes: tuple[int, ...]) -> dict[str, Any]:
    """The fastest experts implementation and batch size, each tried once after a warm-up."""
    tried = []
    for experts in ("eager", "grouped_mm"):
        model.set_experts_implementation(experts)
        theirs(model, ids[:1], 1)
        for sequences in sizes:
            some = ids[: max(4, sequences)]
            rate = some.numel() / clocked(lambda s=some, n=sequences: theirs(model, s, n))
            tried.append({"experts": experts, "sequences": sequences, "tokens_per_second": rate})
    best = max(tried, key=lambda t: t["tokens_per_second"])
    return {**best, "tried": tried}


def flops(layers: int, with_experts: int, length: int, name: str = "olmoe") -> float:
    """Multiplications and additions of a token: attention, router, chosen experts."""
    from checkpoints import config_of

    config = config_of(name)
    width, keys = config.hidden_size, config.num_key_value_heads / config.num_attention_heads
    experts = getattr(config, "num_experts", None) or config.num_local_experts
    attention = 2 * width * width * (2 + 2 * keys) + 2 * 2 * width * length / 2
    inner = config.num_experts_per_tok * 3 * 2 * width * config.intermediate_size
    return layers * (attention + 2 * width * experts) + with_experts * inner


# -- clocks


def clocked(run: Callable[[], Any]) -> float:
    began = time.perf_counter()
    run()
    return time.perf_counter() - began


def by_turns(runs: dict[str, Callable[[], Any]], repeats: int) -> dict[str, list[float]]:
    """Seconds of each, one after the other, after a round to warm up."""
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(repeats + 1):
        for name, run in runs.items():
            seconds[name].append(clocked(run))
    return {name: values[1:] for name, values in seconds.items()}


def peak_rss() -> int:
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    found = re.search(r"VmHWM:\s+(\d+) kB", status)
    return int(found[1]) * 1024 if found else 0


def forget(folder: Path) -> None:
    """Ask the system to drop these files from its cache, so that they are read from the disk."""
    for path in folder.iterdir():
        with path.open("rb") as file:
            os.fdatasync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


CASES = {
    "peak": peak, "resident": resident, "demo": demo, "recording": recording, "growth": growth,
    "streamed": streamed, "mixtral": mixtral,
}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--case", choices=CASES, action="append", help="all by default")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--mixtral-layers", type=int, default=4)
    parser.add_argument("--folder", type=Path, help="where checkpoints are written")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--one", choices=CASES, help=argparse.SUPPRESS)
    parser.add_argument("--point", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.point:
        print(json.dumps(point(json.loads(given.point))))
        return
    if given.one:
        print(json.dumps(CASES[given.one](given) | {"process_peak_rss_bytes": peak_rss()}))
        return
    report: dict[str, Any] = {
        "machine": {"processor": processor(), "cores": os.cpu_count()},
        "results": {},
    }
    if given.out and given.out.is_file():  # cases that were not asked for stay as they were
        report["results"] = json.loads(given.out.read_text(encoding="utf-8"))["results"]
    for case in given.case or CASES:
        print(f"{case} …", file=sys.stderr, flush=True)
        command = [sys.executable, __file__, "--one", case, "--repeats", str(given.repeats)]
        threads = {"OPENBLAS_NUM_THREADS": "1"} if case == "recording" else {}
        command += ["--mixtral-layers", str(given.mixtral_layers)]
        command += ["--folder", str(given.folder)] if given.folder else []
        done = subprocess.run(
            command, check=True, stdout=subprocess.PIPE, text=True, env=os.environ | threads
        )
        report["results"][case] = json.loads(done.stdout.splitlines()[-1])
        text = json.dumps(report, indent=1)
        if given.out:
            given.out.write_text(text + "\n", encoding="utf-8")
    print(text)


def processor() -> str:
    info = Path("/proc/cpuinfo")
    found = re.search(r"model name\s*: (.*)", info.read_text()) if info.is_file() else None
    return found[1] if found else platform.processor()


if __name__ == "__main__":
    main()
