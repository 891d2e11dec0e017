"""Requests as a serving engine would have served them, in the spellings of vLLM and SGLang.

Text is continued greedily by the model itself; then the whole text but its last token is run once
more with our own capture. What the engines would report is written by hand from that.
"""

import base64
import csv
import io
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from tests.support.saved import save_tiny, write_corpus

from moescope.corpus import CorpusSpec, open_corpus
from moescope.metrics.runs import AnalyzedRun, open_run
from moescope.models import LoadedModel, ModelSpec, load_model
from moescope.models.capture import RoutingCapture
from moescope.run.options import TraceOptions
from moescope.trace import trace
from moescope.trace.importers import import_traces

GARBAGE = 251
"""What stands in the slots of dense layers: a number that no expert has."""


class Served(NamedTuple):
    """One request; ``experts`` (T − 1, decoder layers, K) by descending weight."""

    doc_id: str
    domain: str
    prompt: list[int]
    output: list[int]
    experts: NDArray[np.int64]

    @property
    def named(self) -> dict[str, Any]:
        return {"id": self.doc_id, "domain": self.domain}


class Case(NamedTuple):
    """A model, the requests that it served, and a trace of the same tokens."""

    loaded: LoadedModel
    folder: Path
    requests: list[Served]
    traced: AnalyzedRun

    @property
    def spec(self) -> ModelSpec:
        return ModelSpec(str(self.folder))

    @property
    def layers(self) -> tuple[int, ...]:
        return self.loaded.anatomy.layer_numbers


def make_case(model_type: str, folder: Path) -> Case:
    return case_of(save_tiny(model_type, folder / "model"), folder)


def case_of(model: Path, folder: Path) -> Case:
    """A saved model, what it wrote for some texts, and a trace of the same."""
    path = folder / "texts.jsonl"
    corpus = write_corpus(path, documents_per_domain=6, domains=2, words=20, seed=3)
    loaded = load_model(ModelSpec(str(model)))
    options = TraceOptions(keep="all", generate=4, context=250)
    run = open_run(trace(loaded, CorpusSpec(path=str(corpus)), folder / "traced", options))
    requests = serve(loaded, corpus, new_tokens=5)
    return Case(loaded, model, requests, run)


def imported_lines(
    engine: Any, records: list[dict[str, Any]], case: Case, folder: Path, **more: Any
) -> AnalyzedRun:
    lines = write_lines(folder / "c.jsonl", records)
    return open_run(import_traces(engine, [lines], folder / "run", case.spec, **more))


def serve(loaded: LoadedModel, corpus: Path, new_tokens: int = 5) -> list[Served]:
    """Every document of a corpus, continued by ``new_tokens``."""
    made = []
    for document in open_corpus(CorpusSpec(path=str(corpus))):
        prompt = loaded.tokenizer(document.text)["input_ids"]
        ids = torch.tensor([prompt])
        with torch.inference_mode():
            out = loaded.model.generate(  # type: ignore[operator]
                ids,
                attention_mask=torch.ones_like(ids),
                max_new_tokens=new_tokens,
                do_sample=False,
            )[0].tolist()
        experts = routed(loaded, out[:-1])
        made.append(Served(document.doc_id, document.domain, prompt, out[len(prompt) :], experts))
    return made


def routed(loaded: LoadedModel, ids: list[int]) -> NDArray[np.int64]:
    """(T, decoder layers, K), by descending weight; dense layers hold `GARBAGE`."""
    sites = [layer.site for layer in loaded.anatomy.layers]
    with RoutingCapture(loaded.model, sites) as capture, torch.inference_mode():
        batch = torch.tensor([ids])
        loaded.model.base_model(input_ids=batch, use_cache=False)  # type: ignore[operator]
        routing = capture.take(expected_rows=len(ids))
    top_k = loaded.anatomy.layers[0].top_k
    made = np.full((len(ids), loaded.anatomy.num_decoder_layers, top_k), GARBAGE, np.int64)
    for layer in loaded.anatomy.layers:
        found = routing[layer.layer_idx]
        order = found.topk_weights.float().sort(dim=-1, descending=True, stable=True).indices
        made[:, layer.layer_idx] = found.topk_ids.gather(-1, order).numpy()
    return made


def packed(experts: NDArray[np.int64], dtype: str = "uint8") -> dict[str, Any]:
    data = base64.b64encode(experts.astype(dtype).tobytes()).decode()
    return {"data": data, "dtype": dtype, "shape": list(experts.shape)}


def npy(experts: NDArray[np.int64]) -> str:
    buffer = io.BytesIO()
    np.save(buffer, experts.astype(np.uint8))
    return base64.b64encode(buffer.getvalue()).decode()


def plain(request: Served, **changes: Any) -> dict[str, Any]:
    """A record as the documentation writes it, with nested lists."""
    return {
        **request.named,
        "prompt_token_ids": request.prompt,
        "output_token_ids": request.output,
        "routed_experts": request.experts.tolist(),
        **changes,
    }


def vllm_answer(request: Served) -> dict[str, Any]:
    """What vLLM's server answers to /v1/completions with return_token_ids."""
    return {
        "id": "cmpl-1",
        "object": "text_completion",
        "choices": [
            {
                "index": 0,
                "text": "…",
                "token_ids": request.output,
                "prompt_token_ids": request.prompt,
                "routed_experts": npy(request.experts),
            }
        ],
        "usage": {"prompt_tokens": len(request.prompt)},
    }


def sglang_answer(request: Served, start: int = 0) -> dict[str, Any]:
    """What SGLang answers to /generate."""
    rows = request.experts[start:].astype("<i4")
    return {
        "text": "…",
        "output_ids": request.output,
        "meta_info": {
            "id": "5f1c",
            "finish_reason": {"type": "length"},
            "prompt_tokens": len(request.prompt),
            "completion_tokens": len(request.output),
            "cached_tokens": start,
            "routed_experts": base64.b64encode(rows.tobytes()).decode(),
        },
    }


def write_lines(path: Path, records: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(r) + "\n" for r in records), encoding="utf-8")
    return path


def write_table(path: Path, request: Served, layers: tuple[int, ...]) -> Path:
    """A CSV with a header, rows shuffled; its JSON file beside it."""
    rows = [
        ("prefill" if t < len(request.prompt) else "decode", t, layer, rank, int(expert))
        for t, row in enumerate(request.experts)
        for layer in layers
        for rank, expert in enumerate(row[layer])
    ]
    np.random.default_rng(0).shuffle(rows := [list(map(str, r)) for r in rows])
    with path.open("w", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(["phase", "token", "layer", "rank", "expert"])
        writer.writerows(rows)
    _write_beside(path, request)
    return path


def write_activations(
    path: Path, request: Served, layers: tuple[int, ...], ubatch: int = 7
) -> Path:
    """A CSV as pull request 28544 writes it: no header, ubatch by ubatch, layer by layer."""
    read, end = len(request.prompt), len(request.experts)
    starts = [*range(0, read, ubatch), *range(read, end)]
    with path.open("w") as stream:
        for start, stop in zip(starts, [*starts[1:], end], strict=True):
            for layer in layers:
                for expert in request.experts[start:stop, layer].reshape(-1):
                    stream.write(f"{layer},{expert}\n")
    _write_beside(path, request)
    return path


def _write_beside(path: Path, request: Served) -> None:
    beside = {**request.named, "prompt_token_ids": request.prompt}
    beside["output_token_ids"] = request.output
    path.with_suffix(".json").write_text(json.dumps(beside), encoding="utf-8")


UNKNOWN = {
    "load": {"gate_mass", "first_share"},
    "repetition": {"first", "first_low", "first_high", "first_by_load"},
    "phases": {"router_entropy", "topk_mass", "first", "committee"},
}
"""Columns that ids without order cannot fill."""


def same(one: AnalyzedRun, other: AnalyzedRun, name: str, but: Iterable[str] = ()) -> None:
    """Two runs agree in every row of a table, and in every column but some."""
    left, right = (run.table(name).to_pydict() for run in (one, other))
    if "kind" in left:  # what the model predicted is in no capture
        rows = [i for i, kind in enumerate(left["kind"]) if kind != "predicted"]
        left = {column: [values[i] for i in rows] for column, values in left.items()}
    assert left.keys() == right.keys()
    assert len(left["phase"]) > 0, name
    for column in left.keys() - {*but}:
        a, b, said = left[column], right[column], f"{name}.{column}"
        if name == "information" and isinstance(a[0], float):  # sums in the order of the K ids
            np.testing.assert_allclose(a, b, rtol=1e-12, atol=1e-12, err_msg=said)
        else:
            np.testing.assert_array_equal(a, b, err_msg=said)
