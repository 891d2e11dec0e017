"""`moescope similarity`: how alike the experts of each layer are, and maps of what they put out."""

from __future__ import annotations

import inspect
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from moescope.cli.common import Format, print_table
from moescope.cli.config import RunConfig, parse_layers, resolve
from moescope.cli.resume import resumable
from moescope.cli.settings import SEED
from moescope.cli.terminal import bar, errors
from moescope.errors import BadInputError

if TYPE_CHECKING:
    import pyarrow as pa

    from moescope.corpus import CorpusSpec
    from moescope.metrics.runs import AnalyzedRun
    from moescope.models import ModelSpec
    from moescope.run.options import TraceOptions
    from moescope.similarity.compare import SimilarityStep
    from moescope.similarity.result import Similarity

_HELP = """Compare the experts of each layer: outputs on identical inputs, weights, router rows.

Give MODEL and a CORPUS, MODEL and a RUN, or a RUN alone, whose model and text are then used.
cosine and cka (linear CKA) compare outputs on the same tokens; weights and router compare
parameters and need no text. Writes result.json, pairs.parquet, maps.parquet and similarity.html,
and prints the most similar pairs. Interrupted, it goes on with --resume.

Example: moescope similarity allenai/OLMoE-1B-7B-0924 texts/ -o alike --layers 1,7,15 --method cka
"""

_MODEL_FLAGS = ("revision", "dtype", "device", "trust_remote_code")
_TEXT_FLAGS = (
    "text_field", "domain_field", "id_field", "domain", "on_error", "split", "test_share",
    "text_unit", "dataset_split", "dataset_config", "context", "chat_template", "chat_text",
    "turns", "count_template",
)  # fmt: skip

_MAPS = ("pca", "umap", "none")


def register(app: typer.Typer) -> None:
    """Add the verb."""
    app.command("similarity", help=_HELP)(_with_shared_flags(similarity))


def similarity(
    model: Annotated[str, typer.Argument(help="model, or a run folder", metavar="MODEL|RUN")],
    text: Annotated[
        str | None, typer.Argument(help="corpus or run folder", metavar="[CORPUS|RUN]")
    ] = None,
    out: Annotated[
        str | None, typer.Option("--out", "-o", help="folder to write [RUN/similarity]")
    ] = None,
    layers: Annotated[str | None, typer.Option(help="MoE layers, such as 1,7,15")] = None,
    method: Annotated[
        list[str] | None,
        typer.Option(help="cosine, cka, weights or router; may be repeated; all four by default"),
    ] = None,
    tokens: Annotated[
        int, typer.Option(help="tokens in all, spread evenly over domains", min=2)
    ] = 10_000,
    window: Annotated[
        int, typer.Option(help="most tokens of one window; shorter brings more documents", min=1)
    ] = 128,
    seed: Annotated[
        int, typer.Option(**SEED, help="of the choice of text, shuffled experts and map points")
    ] = 0,
    memory: Annotated[
        str, typer.Option(help="for outputs beside the model; what does not fit goes to a file")
    ] = "1GB",
    reference: Annotated[
        int, typer.Option(help="experts with shuffled weights that answer too", min=0)
    ] = 4,
    map_kind: Annotated[
        list[str] | None,
        typer.Option(
            "--map", help="2-D map of outputs: pca, umap, none; may be repeated [pca with text]"
        ),
    ] = None,
    map_points: Annotated[int, typer.Option(help="most points of a layer's map", min=5)] = 4000,
    pdf: Annotated[
        bool, typer.Option("--pdf", help="figures for a paper too, in FOLDER/figures")
    ] = False,
    resume: Annotated[
        bool, typer.Option("--resume", help="go on with an interrupted comparison")
    ] = False,
    rows: Annotated[int, typer.Option(help="pairs to print of each method; 0: all", min=0)] = 5,
    form: Annotated[Format, typer.Option("--format", help="how to print")] = "table",
    **shared: Any,
) -> None:
    """Compare, write, and print the most similar pairs."""
    from moescope.corpus import CorpusSpec
    from moescope.files import claim
    from moescope.measure.journal import JOURNAL
    from moescope.memory import parse_memory
    from moescope.models import load_model
    from moescope.report.similarity_figures import require_matplotlib, write_similarity_figures
    from moescope.report.similarity_page import write_similarity_page
    from moescope.similarity.compare import METHODS, SimilarityOptions
    from moescope.similarity.compare import similarity as compare
    from moescope.similarity.result import SIMILARITY

    if pdf:
        require_matplotlib()
    spec, source, trace_options, folder = _inputs(model, text, out, seed, shared)
    options = SimilarityOptions(
        methods=_chosen("--method", method or METHODS, METHODS),
        layers=None if layers is None else parse_layers(layers),
        tokens=tokens, window_tokens=window, seed=seed, memory=parse_memory(memory),
        reference=reference, maps=_maps(map_kind, source is not None), map_points=map_points,
    )  # fmt: skip
    reads = [source.path] if isinstance(source, CorpusSpec) else []
    with claim(folder, SIMILARITY, reads=reads), resumable(folder, JOURNAL):
        with _progress() as show:
            show(None, f"loading {spec.model}")
            loaded = load_model(spec)
            made = compare(
                loaded, source, options, trace_options=trace_options, folder=folder,
                resume=resume, on_step=lambda step: show(step, step.what),
            )  # fmt: skip
        made.save(folder)
        _warn(made)
        page = write_similarity_page(made, folder / "similarity.html")
        if pdf:
            for path in write_similarity_figures(made, folder / "figures"):
                errors.print(str(path), soft_wrap=True)
    print_table(_top(made.pairs, rows), form)
    errors.print(str(page), soft_wrap=True)


def _inputs(
    model: str, text: str | None, out: str | None, seed: int, shared: dict[str, Any]
) -> tuple[ModelSpec, CorpusSpec | AnalyzedRun | None, TraceOptions, Path]:
    """What to load, what to read, and where to write."""
    from moescope.files import usable_path
    from moescope.metrics.runs import open_run

    run_path = next((p for p in (text, model if text is None else None) if _is_run(p)), None)
    run = None if run_path is None else open_run(run_path)
    given = {k: v for k, v in shared.items() if v is not None}
    if run is not None:
        out = str(run.path / "similarity") if out is None else out
        _refuse_text_flags(given, str(run.path))
        if text is None:
            known = run.manifest.model
            model = str(known["name"])
            own = {n: known[n] for n in ("revision", "dtype") if known[n] is not None}
            given = own | given
    if out is None:
        raise BadInputError("say where the results go: -o FOLDER")
    if text is None and run is None:
        _refuse_text_flags(given, "a model without text")
    config = resolve(
        {"model": model, "corpus": text or "", "out": out, "seed": seed, **given}, None
    )
    corpus = None if run is not None or text is None else config.corpus_spec()
    return (
        config.model_spec(),
        run if run is not None else corpus,
        config.trace_options(),
        usable_path(out),
    )


def _is_run(path: str | None) -> bool:
    return path is not None and (Path(path) / "manifest.json").is_file()


def _refuse_text_flags(given: dict[str, Any], what: str) -> None:
    extra = [f"--{name.replace('_', '-')}" for name in _TEXT_FLAGS if name in given]
    if extra:
        raise BadInputError(
            f"{extra[0]} says how a corpus is read, and {what} brings none to be read so; leave it "
            "out, or give MODEL CORPUS"
        )


def _maps(wanted: list[str] | None, reads_text: bool) -> tuple[Any, ...]:
    if wanted is None:
        return ("pca",) if reads_text else ()
    return tuple(kind for kind in _chosen("--map", wanted, _MAPS) if kind != "none")


def _chosen(flag: str, given: Sequence[str], known: Sequence[str]) -> tuple[Any, ...]:
    """Each once, in order; typer has no lists of choices."""
    for name in given:
        if name not in known:
            raise BadInputError(f"{flag} {name!r} is none of: {', '.join(known)}")
    return tuple(dict.fromkeys(given))


def _top(pairs: pa.Table, rows: int) -> pa.Table:
    """The most similar pairs of each method, over all layers."""
    import pyarrow as pa

    shown: list[dict[str, Any]] = []
    records = pairs.to_pylist()
    for method in dict.fromkeys(r["method"] for r in records):
        own = [r for r in records if r["method"] == method and r["value"] is not None]
        own.sort(key=lambda r: -r["value"])
        for r in own[: rows or None]:
            shown.append({
                "method": method, "a": f"L{r['layer']}E{r['expert_a']}",
                "b": f"L{r['layer']}E{r['expert_b']}", "value": r["value"],
                "ci_low": r["ci_low"], "ci_high": r["ci_high"], "chance": r["chance"],
                "reference": r["reference"], "tokens": r["tokens"],
            })  # fmt: skip
    names = ("method", "a", "b", "value", "ci_low", "ci_high", "chance", "reference", "tokens")
    return pa.table({n: pa.array([r[n] for r in shown]) for n in names})


def _warn(made: Similarity) -> None:
    """Say on stderr what was covered, and what was not."""
    from moescope.similarity.answers import similarity_notes

    text = made.about["text"]
    if text is not None:
        errors.print(
            f"{text['tokens']:,} tokens of {text['documents']:,} documents from "
            f"{len(text['domains'])} domains"
        )
    for note in similarity_notes(made.about):
        errors.print(f"note: {note.text}", style="yellow", soft_wrap=True)


@contextmanager
def _progress() -> Iterator[Callable[[SimilarityStep | None, str], None]]:
    """A bar on stderr: what is done, share of the operations, operations per second, time left."""
    with bar("rate") as progress:
        task = progress.add_task("starting", total=None, rate="")
        began: list[float] = []

        def show(step: SimilarityStep | None, words: str) -> None:
            if step is None:
                progress.update(task, description=words)
                return
            began.append(time.monotonic()) if not began else None
            seconds = time.monotonic() - began[0]
            rate = f"{step.done / seconds / 1e9:,.0f} GFLOP/s" if seconds > 0.5 else ""
            progress.update(
                task, description=words, completed=step.done, total=step.total, rate=rate
            )

        yield show


def _with_shared_flags(body: Callable[..., None]) -> Callable[..., None]:
    """Give the command those flags of `analyze` that say which model and how text is read."""

    def command(**given: Any) -> None:
        body(**given)

    own = list(inspect.signature(body, eval_str=True).parameters.values())[:-1]
    parameters = [p.replace(kind=inspect.Parameter.KEYWORD_ONLY) for p in own]
    for name in (*_MODEL_FLAGS, *_TEXT_FLAGS):
        field = RunConfig.model_fields[name]
        flag = "--" + name.replace("_", "-")
        flags = f"{flag}/--no-{flag[2:]}" if field.annotation is bool else flag
        kind = typer.Option(flags, help=field.description)
        annotation: Any = Annotated[field.annotation | None, kind]  # type: ignore[operator]
        parameters.append(
            inspect.Parameter(
                name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=annotation
            )
        )
    command.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    command.__annotations__ = {p.name: p.annotation for p in parameters}
    command.__doc__, command.__name__ = body.__doc__, body.__name__
    return command
