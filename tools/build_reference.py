"""Write docs/reference from the code: command line, tables, architectures, run format, Python.

    python tools/build_reference.py            # write the pages
    python tools/build_reference.py --check    # say which pages are stale; exit 1 if any is

Nothing here is measured: pages hold names, types and docstrings only, so they are the same on
every machine. Tables and the run format are read off a run of a tiny random model, the
architectures off tiny random models of every type, all built in memory or a temporary folder.
"""

from __future__ import annotations

import argparse
import inspect
import os
import re
import sys
import tempfile
import types
import typing
from collections.abc import Callable, Iterable
from functools import cache, cached_property
from pathlib import Path
from typing import Any, Literal

ROOT = Path(__file__).resolve().parent.parent
REFERENCE = ROOT / "docs" / "reference"
sys.path.insert(0, str(ROOT))
for _name, _value in {
    "TRANSFORMERS_VERBOSITY": "error",
    "HF_HUB_OFFLINE": "1",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
}.items():
    os.environ.setdefault(_name, _value)

_HEAD = "<!-- Written by tools/build_reference.py; change the code, then run: make docs -->\n"
_SECTIONS = ("Args", "Attributes", "Returns", "Yields", "Raises", "Example", "Reference")
_WORDS = {str: "text", int: "integer", float: "number", Path: "path"}


# ---------------------------------------------------------------- the command line


def cli_page() -> str:
    """Every verb with its help, arguments and flags."""
    import typer

    from moescope.cli.main import app

    group = typer.main.get_command(app)
    out = ["# Command line", "", _prose(_app_help(app)), ""]
    out += [
        "Data goes to stdout, progress and warnings to stderr. Exit code 0: done; 1: failed; "
        "2: bad input.",
        "",
        "`moescope --version` prints the version, `moescope VERB --help` this text.",
        "",
    ]
    out += [f"- [`{name}`](#{name}): {_first_line(c.help)}" for name, c in commands(group).items()]
    for name, command in commands(group).items():
        out += ["", f"## {name}", "", *_help_lines(command.help), ""]
        out += [_usage(name, command), "", *_parameters(app, name, command)]
    return _page(out)


def commands(group: Any) -> dict[str, Any]:
    """The verbs of the command line, in the order of its help."""
    return dict(group.commands)


def _app_help(app: Any) -> str:
    return str(app.info.help)


def _help_lines(text: str) -> list[str]:
    """Paragraphs as they are; the example as a code block."""
    lines = []
    for line in inspect.cleandoc(text).splitlines():
        if line.startswith("Example: "):
            lines += ["```console", f"$ {line.removeprefix('Example: ')}", "```"]
        else:
            lines.append(line)
    return lines


def _usage(name: str, command: Any) -> str:
    words = [
        (p.metavar or p.name.upper()) if p.required else f"[{(p.metavar or p.name).strip('[]')}]"
        for p in command.params
        if p.param_type_name == "argument"
    ]
    return f"Usage: `moescope {' '.join([name, *words])} [OPTIONS]`"


def _parameters(app: Any, name: str, command: Any) -> list[str]:
    from typer.utils import get_params_from_function

    body = next(c.callback for c in app.registered_commands if c.name == name)
    kinds = {n: p.annotation for n, p in get_params_from_function(body).items()}
    rows = []
    for p in command.params:
        if p.name == "help":
            continue
        spelt = [p.metavar or p.name] if p.param_type_name == "argument" else p.opts
        spelt = [*spelt, *p.secondary_opts]
        what = p.help or ""
        shown = ", ".join(f"`{_bar(s.strip('[]'))}`" for s in spelt)
        rows.append([shown, _bar(_kind(kinds[p.name])), _bar(_with_default(what, p.default))])
    return _table(["argument or flag", "value", "meaning"], rows)


def _with_default(what: str, default: Any) -> str:
    if default is None or isinstance(default, bool) or callable(default) or "[" in what:
        return what
    return f"{what} [{default}]"


def _kind(annotation: Any) -> str:
    """What a person may write for a value of this type."""
    origin, inner = typing.get_origin(annotation), typing.get_args(annotation)
    if annotation is bool:
        return "–"
    if origin is Literal:
        return " | ".join(f"`{v}`" for v in inner)
    if origin in (typing.Union, types.UnionType):
        return _kind(next(t for t in inner if t is not type(None)))
    return _WORDS.get(annotation, str(annotation))


# ---------------------------------------------------------------- tables


def tables_page() -> str:
    """Every table: what it says, and its columns with their Arrow types."""
    from moescope.metrics.phases import phases
    from moescope.metrics.tables import TABLES

    docs = {name: spec.make.__doc__ for name, spec in TABLES.items()} | {"phases": phases.__doc__}
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
    out += [f"- [`{name}`](#{name}): {_first_line(doc)}" for name, doc in docs.items()]
    for name, doc in docs.items():
        schema = run.table(name).schema
        out += ["", f"## {name}", "", *_docstring(doc), ""]
        out += _table(["column", "type"], [[f"`{f.name}`", str(f.type)] for f in schema])
    return _page(out)


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


# ---------------------------------------------------------------- architectures


def architectures_page() -> str:
    """What is found in a tiny model of every Mixture-of-Experts type of transformers."""
    from tests.support.tiny import COMPOSITE_MODEL_TYPES, MOE_MODEL_TYPES

    from moescope.models.anatomy import REFUSED

    rows = [_architecture(model_type) for model_type in MOE_MODEL_TYPES]
    read = len(MOE_MODEL_TYPES) - len(REFUSED.keys() & set(MOE_MODEL_TYPES))
    out = [
        "# Architectures",
        "",
        f"The {len(MOE_MODEL_TYPES)} Mixture-of-Experts model types behind transformers' "
        "`AutoModelForCausalLM`",
        f"whose configuration is that of the text model; {read} are read, "
        f"{len(MOE_MODEL_TYPES) - read} refused.",
        "Everything in the table is observed on a tiny random model, without weights; a published",
        "checkpoint of the type may differ in what its configuration decides (which layers have",
        "experts, normalisation, shared experts). `moescope inspect MODEL` shows yours.",
        "",
        "- *MoE layers*: MoE layers of all decoder layers in the tiny model.",
        "- *scoring*: how logits become scores; see [decisiveness](../concepts/decisiveness.md).",
        "- *normalised*: the K weights of a token always have the same sum.",
        "- *selection bias*: something besides the scores decides who is chosen (a bias, groups,",
        "  a hash of the token).",
        "- *shared*: modules of always-active experts in a layer.",
        "",
    ]
    head = ["type", "MoE layers", "router class", "scoring", "normalised", "selection bias"]
    out += _table([*head, "shared", "status"], rows)
    out += [
        "",
        "## Types that wrap a text model",
        "",
        "Published checkpoints of these types carry a configuration with a text part, which is the",
        "one that is read.",
        "",
    ]
    pairs = sorted(COMPOSITE_MODEL_TYPES.items())
    out += _table(["type", "read as"], [[f"`{a}`", f"`{b}`"] for a, b in pairs])
    return _page(out)


def _architecture(model_type: str) -> list[str]:
    import torch
    from tests.support.tiny import tiny_config
    from transformers import AutoModelForCausalLM

    from moescope.errors import ModelError
    from moescope.models import find_anatomy

    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(tiny_config(model_type))
    try:
        anatomy = find_anatomy(model, model.config)
    except ModelError as error:
        return [f"`{model_type}`", *["–"] * 6, f"refused: {_bar(str(error).partition(': ')[2])}"]
    layers = anatomy.layers

    def distinct(values: Iterable[Any]) -> str:
        return ", ".join(dict.fromkeys(_yes(v) for v in values))

    return [
        f"`{model_type}`",
        f"{len(layers)} of {anatomy.num_decoder_layers}",
        distinct(f"`{type(model.get_submodule(m.site.router)).__name__}`" for m in layers),
        distinct(m.scoring for m in layers),
        distinct(m.normalized for m in layers),
        distinct(m.selection_bias for m in layers),
        distinct(len(m.site.shared) for m in layers),
        "read",
    ]


def _yes(value: Any) -> str:
    return ("yes" if value else "no") if isinstance(value, bool) else str(value)


# ---------------------------------------------------------------- run format


def run_format_page() -> str:
    """The files of a run: manifest, Parquet schemas, tensors of the state."""
    from moescope.corpus import CorpusSpec
    from moescope.trace import TraceOptions
    from moescope.trace.shards import document_table, shard_table
    from moescope.trace.state import PHASES
    from moescope.trace.store import SCHEMA_VERSION, Manifest, Stored, read_parquet

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
        *_docstring(Manifest.__doc__),
        "",
        *_fields(Manifest),
        "",
        f"`Stored`: {_first_line(Stored.__doc__)}",
        "",
        *_fields(Stored),
    ]
    for name in ("model", "progress", "coverage"):
        keys = ", ".join(f"`{k}`" for k in getattr(run.manifest, name))
        out += ["", f"Keys of `{name}`: {keys}."]
    out += ["", "## options", "", *_docstring(TraceOptions.__doc__), "", *_fields(TraceOptions)]
    out += ["", "## corpus", "", *_docstring(CorpusSpec.__doc__), "", *_fields(CorpusSpec)]
    out += ["", "## documents.parquet", "", *_docstring(document_table.__doc__), ""]
    out += _schema(run.documents.schema)
    out += ["", "## sample.parquet and shards/NNNNN.parquet", ""]
    out += [*_docstring(inspect.getmodule(shard_table).__doc__), ""]
    assert shard.schema.names == run.sample_table.schema.names
    out += _schema(shard.schema, fold_layers=True)
    listed = ", ".join(f"`{p}`" for p in PHASES)
    out += [
        "",
        "## aggregates/state-*.safetensors",
        "",
        "One file with everything that is summed, named after the number of documents read. The",
        f"phases are {listed}; a phase is there when it has tokens. `sparse/NAME/keys` and",
        "`…/counts` are a sorted table of packed keys (see `moescope.trace.aggregates.unpack`).",
        "",
        *_docstring(_aggregates_doc()),
        "",
        *_tensors(run),
        "",
        "## vocabulary.json",
        "",
        "The text of every token id that occurs in the token-id tables or in the sample.",
    ]
    return _page(out)


def _aggregates_doc() -> str:
    from moescope.trace.aggregates import PhaseAggregates

    return PhaseAggregates.__doc__ or ""


def _tensors(run: Any) -> list[str]:
    rows = {}
    for name, array in run.state.to_arrays().items():
        folded = re.sub(r"_\d+(?=/|$)", "_N", name).replace("prefill/", "PHASE/")
        if not folded.startswith("decode/"):
            rows[folded] = [f"`{folded}`", str(array.dtype), str(array.ndim)]
    return _table(["tensor", "type", "axes"], [rows[name] for name in sorted(rows)])


def _schema(schema: Any, *, fold_layers: bool = False) -> list[str]:
    rows = {}
    for field in schema:
        name = re.sub(r"^([ewhm])_\d+$", r"\1_N", field.name) if fold_layers else field.name
        kind = re.sub(r"\[\d+\]$", "[K]", str(field.type))
        rows[name] = [f"`{name}`", _bar(kind)]
    return _table(["column", "type"], list(rows.values()))


def _fields(model: Any) -> list[str]:
    rows = []
    for name, field in model.model_fields.items():
        default = "required" if field.is_required() else f"`{_default(field)}`"
        meaning = " ".join((field.description or "").replace("``", "`").split())
        rows.append([f"`{name}`", f"`{_bar(_spelt(field.annotation))}`", default, _bar(meaning)])
    head = ["field", "type", "default", "meaning"]
    if not any(row[3] for row in rows):
        return _table(head[:3], [row[:3] for row in rows])
    return _table(head, rows)


def _default(field: Any) -> str:
    return repr(field.default_factory() if field.default_factory else field.default)


def _spelt(annotation: Any) -> str:
    """A type as it is written in the code, the same under every version of Python."""
    origin, inner = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is typing.Annotated:
        return _spelt(inner[0])
    if origin in (typing.Union, types.UnionType):
        return " | ".join(_spelt(part) for part in inner)
    if origin is Literal:
        return f"Literal[{', '.join(map(repr, inner))}]"
    if inner:
        return f"{origin.__name__}[{', '.join(_spelt(part) for part in inner)}]"
    if annotation in (type(None), ...):
        return "None" if annotation is type(None) else "..."
    return str(getattr(annotation, "__name__", annotation))


# ---------------------------------------------------------------- Python


def python_page() -> str:
    """Every public name with its signature and docstring."""
    import moescope

    names = [n for n in moescope.__all__ if not n.startswith("__")]
    out = [
        "# Python",
        "",
        "What `import moescope` offers; names are resolved when they are first used.",
        "",
        *[f"- [`{n}`](#{n.lower()}): {_first_line(getattr(moescope, n).__doc__)}" for n in names],
    ]
    for name in names:
        thing = getattr(moescope, name)
        out += ["", f"## {name}", "", f"`from moescope import {name}`", ""]
        if hasattr(thing, "model_fields"):
            out += [*_docstring(thing.__doc__), "", *_fields(thing)]
            continue
        out += ["```python", _signature(name, thing), "```", "", *_docstring(thing.__doc__)]
        if inspect.isclass(thing) and not issubclass(thing, Exception):
            out += _members(thing)
    return _page(out)


def _members(thing: type) -> list[str]:
    out: list[str] = []
    for owner in thing.__mro__:
        if not owner.__module__.startswith("moescope"):
            continue
        for name, member in vars(owner).items():
            if name.startswith("_"):
                continue
            if isinstance(member, classmethod | staticmethod):
                member = member.__func__
            if inspect.isfunction(member):
                head = f"`.{name}{_bare_signature(member)}`"
            elif isinstance(member, property | cached_property):
                head = f"`.{name}`"
            else:
                continue
            line = f"- {head}: {_first_line(member.__doc__)}"
            if not any(o.startswith(f"- `.{name}") for o in out):
                out.append(line)
    return ["", *out] if out else []


def _signature(name: str, thing: Any) -> str:
    try:
        text = f"{name}{_bare_signature(thing)}"
    except (TypeError, ValueError):
        return name
    if len(text) <= 100:
        return text
    head, _, rest = text.partition("(")
    inside, _, tail = rest.rpartition(")")
    parts = re.split(r", (?=[*\w]+(?::|,|$))", inside)
    return head + "(\n" + "".join(f"    {p},\n" for p in parts) + ")" + tail


class _Raw(str):
    """An annotation that is shown as it is written."""

    def __repr__(self) -> str:
        return str(self)


def _bare_signature(thing: Any) -> str:
    def plain(annotation: Any) -> Any:
        annotation = getattr(annotation, "__forward_arg__", annotation)
        return _Raw(annotation) if isinstance(annotation, str) else annotation

    made = inspect.signature(thing)
    kept = [
        p.replace(annotation=plain(p.annotation))
        for p in made.parameters.values()
        if p.name not in ("self", "cls")
    ]
    return str(made.replace(parameters=kept, return_annotation=plain(made.return_annotation)))


# ---------------------------------------------------------------- docstrings and Markdown


def _docstring(text: str | None) -> list[str]:
    """A Google-style docstring as Markdown."""
    out: list[str] = []
    section = ""
    for line in inspect.cleandoc(text or "").replace("``", "`").splitlines():
        word = line.rstrip(":")
        if line.endswith(":") and word in _SECTIONS:
            out += [*_close(section), "", f"**{word}**", ""]
            section = word
            out += ["```python"] if section == "Example" else []
        elif section and line and not line.startswith(" "):
            out += [*_close(section), line]
            section = ""
        elif section in ("Args", "Attributes", "Raises") and line.startswith("    "):
            out.append(_item(line[4:]))
        elif section:
            out.append(line.removeprefix("    "))
        else:
            out.append(line if line.startswith("    ") else re.sub(r"::$", ":", line))
    return _tidy(out + _close(section))


def _item(line: str) -> str:
    name, colon, rest = line.partition(":")
    if line.startswith(" ") or not colon or not re.fullmatch(r"\w+", name):
        return f"  {line.strip()}"
    return f"- `{name}`:{rest}"


def _close(section: str) -> list[str]:
    return ["```", ""] if section == "Example" else []


def _tidy(lines: list[str]) -> list[str]:
    """No blank line before a closing fence, never two in a row, none at the ends."""
    out: list[str] = []
    for line in lines:
        if line == "```":
            while out and not out[-1].strip():
                out.pop()
        if line.strip() or (out and out[-1].strip() and out[-1] != "```python"):
            out.append(line.rstrip())
    while out and not out[-1].strip():
        out.pop()
    return out


def _table(head: list[str], rows: list[list[str]]) -> list[str]:
    ruler = ["---"] * len(head)
    return [f"| {' | '.join(cells)} |" for cells in (head, ruler, *rows)]


def _bar(text: str) -> str:
    return text.replace("|", "\\|")


def _first_line(text: str | None) -> str:
    return inspect.cleandoc(text or "").partition("\n")[0].replace("``", "`")


def _prose(text: str) -> str:
    return " ".join(text.split())


def _page(lines: list[str]) -> str:
    return _HEAD + "\n" + "\n".join(lines).rstrip() + "\n"


PAGES: dict[str, Callable[[], str]] = {
    "cli.md": cli_page,
    "tables.md": tables_page,
    "architectures.md": architectures_page,
    "run-format.md": run_format_page,
    "python.md": python_page,
}
"""File name → the function that writes its text."""


def stale(names: Iterable[str] = tuple(PAGES)) -> list[str]:
    """Names of the pages whose text on disk is not what the code gives now."""
    return [name for name in names if _on_disk(name) != PAGES[name]()]


def _on_disk(name: str) -> str:
    path = REFERENCE / name
    return path.read_text(encoding="utf-8") if path.is_file() else ""


def main() -> int:
    parser = argparse.ArgumentParser(description="Write docs/reference from the code.")
    parser.add_argument("--check", action="store_true", help="write nothing; fail if stale")
    parser.add_argument("pages", nargs="*", help=f"some of {', '.join(PAGES)}; default: all")
    given = parser.parse_args()
    unknown = set(given.pages) - set(PAGES)
    if unknown:
        parser.error(f"no page {sorted(unknown)}; there are {', '.join(PAGES)}")
    names = given.pages or list(PAGES)
    if given.check:
        old = stale(names)
        for name in old:
            print(f"docs/reference/{name} is stale; run: python tools/build_reference.py")
        return int(bool(old))
    REFERENCE.mkdir(parents=True, exist_ok=True)
    for name in names:
        (REFERENCE / name).write_text(PAGES[name](), encoding="utf-8")
        print(f"docs/reference/{name}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
