"""Peak memory and time of cosine and CKA between all experts of a layer, as JSON.

One layer of the shape asked for (OLMoE-1B-7B's by default: 64 experts, D 2048, F 1024) plus four
experts as a reference, on random inputs. An expert's weights exist only while it answers, so what
is measured is the comparison and not the model. In a fresh process, whose peak is its own.

    python benchmarks/similarity_memory.py [--tokens 10000] [--hidden 2048] [--threads 2] [--out F]
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

GROUPS = 10
REFERENCE = 4


def measure(given: argparse.Namespace) -> dict[str, Any]:
    import numpy as np
    import torch

    from moescope.similarity.gram import (
        FunctionOutputs,
        TokenGroups,
        cosine_sums,
        gram_sums,
    )
    from moescope.similarity.pair_values import cka_values, cosine_values

    torch.set_num_threads(given.threads)
    began, seconds = memory_mib(), {}
    functions = given.experts + REFERENCE
    sizes = [given.tokens // GROUPS + (g < given.tokens % GROUPS) for g in range(GROUPS)]
    groups = TokenGroups(sizes)
    hidden = torch.randn(given.tokens, given.hidden, generator=seeded(0))
    with tempfile.TemporaryDirectory(dir=given.folder) as folder:
        outputs = FunctionOutputs(
            functions, groups, given.hidden, budget=given.memory * 1e9, folder=Path(folder)
        )
        clock = time.perf_counter()
        for function in range(functions):
            outputs.add(function, answer(function, hidden, given.expert_hidden))
        seconds["outputs"] = time.perf_counter() - clock
        routed = torch.zeros(given.tokens, given.experts, dtype=torch.bool)
        clock = time.perf_counter()
        cosine = cosine_values(cosine_sums(outputs, routed), groups.sizes, {}, given.experts)
        seconds["cosine"] = time.perf_counter() - clock
        clock = time.perf_counter()
        cka = cka_values(gram_sums(outputs), groups.sizes, {}, given.experts)
        seconds["cka"] = time.perf_counter() - clock
        in_file = not outputs.store.in_memory
        peak = memory_mib("VmHWM")
        check = brute_pair(outputs, given.tokens)
    return {
        "experts": given.experts, "reference_experts": REFERENCE, "tokens": given.tokens,
        "hidden": given.hidden, "expert_hidden": given.expert_hidden,
        "budget_gb": given.memory, "threads": given.threads, "outputs_in_a_file": in_file,
        "outputs_gb": functions * given.tokens * given.hidden * 4 / 1e9,
        "memory_before_mib": round(began), "peak_rss_mib": round(peak),
        "seconds": {k: round(v, 1) for k, v in seconds.items()},
        "difference_from_float64": {
            "cosine": float(abs(cosine.value[0, 1] - check[0])),
            "cka": float(abs(cka.value[0, 1] - check[1])),
        },
        "mean_cka": float(np.mean(cka.pairs())),
    }  # fmt: skip


def answer(function: int, hidden: Any, expert_hidden: int) -> Any:
    """A gated expert with random weights, made for this call only."""
    import torch

    width = hidden.shape[1]
    generator = seeded(function + 1)
    gate, up = (torch.randn(width, expert_hidden, generator=generator) for _ in range(2))
    down = torch.randn(expert_hidden, width, generator=generator)
    rows = torch.empty_like(hidden)
    for start in range(0, len(hidden), 2048):
        part = hidden[start : start + 2048]
        rows[start : start + 2048] = (torch.nn.functional.silu(part @ gate) * (part @ up)) @ down
    return rows


def brute_pair(outputs: Any, tokens: int) -> tuple[float, float]:
    """Cosine and CKA of functions 0 and 1 in float64, in feature space."""
    import torch

    y = [outputs.store.read(f, 0, tokens).double() for f in (0, 1)]
    top = (y[1].T @ y[0]).norm() ** 2
    cka = top / ((y[0].T @ y[0]).norm() * (y[1].T @ y[1]).norm())
    raw = [rows + outputs.means_FD[f] for f, rows in enumerate(y)]
    cosine = torch.nn.functional.cosine_similarity(*raw, dim=1).mean()
    return float(cosine), float(cka)


def seeded(seed: int) -> Any:
    import torch

    return torch.Generator().manual_seed(seed)


def memory_mib(name: str = "VmRSS") -> float:
    """What the process holds now, or the most that it held (VmHWM)."""
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    match = re.search(rf"{name}:\s+(\d+) kB", status)
    return int(match[1]) / 1024 if match else float("nan")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--experts", type=int, default=64)
    parser.add_argument("--tokens", type=int, default=10_000)
    parser.add_argument("--hidden", type=int, default=2048)
    parser.add_argument("--expert-hidden", type=int, default=1024)
    parser.add_argument("--memory", type=float, default=1.0, help="budget in GB")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--folder", type=Path, help="where outputs are written meanwhile")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--here", action="store_true", help="measure in this process")
    given = parser.parse_args()
    if given.here:
        print(json.dumps(measure(given)))
        return
    done = subprocess.run(
        [sys.executable, *sys.argv, "--here"], check=True, capture_output=True, text=True
    )
    machine = {"processor": platform.processor(), "cores": os.cpu_count()}
    report = {"machine": machine, **json.loads(done.stdout.splitlines()[-1])}
    text = json.dumps(report, indent=1)
    print(text)
    if given.out:
        given.out.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
