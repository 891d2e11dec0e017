"""The pages of tables and of the run format, read off a run of a tiny random model."""

from __future__ import annotations

import inspect
import re
import tempfile
from functools import cache
from pathlib import Path
from typing import Any

from tools.reference.markdown import bar, docstring, fields, first_line, page, table


def tables_page() -> str:
    """Every table: what it says, and its columns with their Arrow types."""
    from moescope.metrics.tables import TABLES

    run = _tiny_run()
    out = [
        "# Tables",
        "",
        "Each is a Parquet file in `RUN/tables/`, made when it is first asked for:",
        "`moescope table RUN NAME`, or `open_run(RUN).table(NAME)` in Python.",
        "`moescope table RUN NAME --about` prints the same description.",
        "",
        "The column `phase` is `prefill` (the text of the corpus) or `decode` (text that the model",
        "wrote, with `--generate`). `layer` is the model's own number. In the column `domain`,",
        "`all` is the total over the domains. A cell that cannot be known is NaN.",
        "",
    ]
    out += [f"- [`{name}`](#{name}): {first_line(made.about)}" for name, made in TABLES.items()]
    for name, made in TABLES.items():
        out += ["", f"## {name}", "", *docstring(made.about), ""]
        out += [f"Defined in [{made.concept}](../concepts/{made.concept}.md).", ""]
        out += table(
            ["column", "type", "what it says"],
            [
                [f"`{f.name}`", str(f.type), bar(str(made.meaning(f.name)))]
                for f in run.table(name).schema
            ],
        )
    return page(out)


_SCRATCH = tempfile.TemporaryDirectory(prefix="moescope-reference-")
"""Removed when the program ends."""


@cache
def _tiny_run() -> Any:
    """A finished run of a tiny random OLMoE with everything kept and some text generated."""
    from tests.support.saved import save_tiny, write_corpus

    from moescope import CorpusSpec, ModelSpec, TraceOptions, load_model, open_run
    from moescope.trace import trace

    folder = Path(_SCRATCH.name)
    model = load_model(ModelSpec(str(save_tiny("olmoe", folder / "model"))))
    corpus = CorpusSpec(path=str(write_corpus(folder / "texts.jsonl")))
    options = TraceOptions(keep="all", generate=3, context=64)
    return open_run(trace(model, corpus, folder / "run", options))


def run_format_page() -> str:
    """The files of a run: manifest, Parquet schemas, tensors of the state."""
    from moescope.corpus import CorpusSpec
    from moescope.run.manifest import SCHEMA_VERSION, Manifest, Stored
    from moescope.run.options import TraceOptions
    from moescope.run.shards import document_table, shard_table
    from moescope.run.state import PHASES
    from moescope.run.store import read_parquet

    run = _tiny_run()
    shard = read_parquet(run.path, run.manifest.shards[0])
    out = [
        "# Run format",
        "",
        f"Schema version {SCHEMA_VERSION}. How these files are written, and why a killed run is",
        "never half a run, is in [architecture.md](../architecture.md#the-run).",
        "",
        "## manifest.json",
        "",
        *docstring(Manifest.__doc__),
        "",
        *fields(Manifest),
        "",
        f"`Stored`: {first_line(Stored.__doc__)}",
        "",
        *fields(Stored),
    ]
    for name in ("model", "progress", "coverage"):
        keys = ", ".join(f"`{k}`" for k in getattr(run.manifest, name))
        out += ["", f"Keys of `{name}`: {keys}."]
    out += ["", "## options", "", *docstring(TraceOptions.__doc__), "", *fields(TraceOptions)]
    out += ["", "## corpus", "", *docstring(CorpusSpec.__doc__), "", *fields(CorpusSpec)]
    out += ["", "## documents.parquet", "", *docstring(document_table.__doc__), ""]
    out += _schema(run.documents.schema)
    out += ["", "## sample.parquet and shards/NNNNN.parquet", ""]
    out += [*docstring(inspect.getmodule(shard_table).__doc__), ""]
    assert shard.schema.names == run.sample_table.schema.names
    out += _schema(shard.schema, fold_layers=True)
    listed = ", ".join(f"`{p}`" for p in PHASES)
    out += [
        "",
        "## aggregates/state-*.safetensors",
        "",
        "One file with everything that is summed, named after the number of documents read. The",
        f"phases are {listed}; a phase is there when it has tokens. `sparse/NAME/keys` and",
        "`…/counts` are a sorted table of packed keys (see `moescope.run.aggregates.unpack`).",
        "",
        *docstring(_aggregates_doc()),
        "",
        *_tensors(run),
        "",
        "## vocabulary.json",
        "",
        "The text of every token id that occurs in the token-id tables or in the sample.",
    ]
    return page(out)


def _aggregates_doc() -> str:
    from moescope.run.aggregates import PhaseAggregates

    return PhaseAggregates.__doc__ or ""


def _tensors(run: Any) -> list[str]:
    rows = {}
    for name, array in run.state.to_arrays().items():
        folded = re.sub(r"_\d+(?=/|$)", "_N", name).replace("prefill/", "PHASE/")
        if not folded.startswith("decode/"):
            rows[folded] = [f"`{folded}`", str(array.dtype), str(len(array.shape))]
    return table(["tensor", "type", "axes"], [rows[name] for name in sorted(rows)])


def _schema(schema: Any, *, fold_layers: bool = False) -> list[str]:
    rows = {}
    for field in schema:
        name = re.sub(r"^([ewhm])_\d+$", r"\1_N", field.name) if fold_layers else field.name
        kind = re.sub(r"\[\d+\]$", "[K]", str(field.type))
        rows[name] = [f"`{name}`", bar(kind)]
    return table(["column", "type"], list(rows.values()))
