"""`moescope similarity`: how alike the experts of each layer are, and maps of what they put out."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from moescope.cli.asked import asked
from moescope.cli.fit import Head
from moescope.cli.settings import ColumnsArgs, Layers, ModelArgs, TextArgs
from moescope.cli.tables import print_table
from moescope.cli.terminal import errors, progress
from moescope.cli.verb import Argument, Flag, note, of, verb
from moescope.corpus import CorpusSpec
from moescope.errors import BadInputError
from moescope.files import usable_path
from moescope.memory import parse_memory
from moescope.similarity.options import Method, SimilarityOptions
from moescope.words import counted

if TYPE_CHECKING:
    import pyarrow as pa

    from moescope.metrics.runs import AnalyzedRun
    from moescope.similarity.result import Similarity


_HEADS = {
    h.name: h
    for h in (
        Head("method", "name", key=True), Head("a", "name", key=True), Head("b", "name", key=True),
        Head("value"), Head("ci_low", of="value"), Head("ci_high", of="value"),
        Head("chance", of="value"), Head("reference", of="value"), Head("tokens"),
    )
}  # fmt: skip
"""How the columns of `_top` are printed."""


class SimilarityArgs(ModelArgs, TextArgs, ColumnsArgs):
    """Everything that `similarity` can be told."""

    model: Annotated[str, Argument("MODEL|RUN")] = Field(description="model, or a run folder")
    text: Annotated[str | None, Argument("CORPUS|RUN")] = None
    """corpus or run folder"""
    out: Annotated[str | None, Flag("-o")] = None
    """folder to write; by default RUN/similarity"""
    layers: Layers = None
    """MoE layers, such as 1,7,15; all (of a run: its) by default"""
    method: tuple[Method, ...] = of(SimilarityOptions, "methods")
    total_tokens: int = of(SimilarityOptions, "tokens")
    window: int = of(SimilarityOptions, "window_tokens")
    output_memory: str = Field(
        "1GB",
        description="for outputs beside the model; what does not fit goes to a file",
        json_schema_extra={"setting": "memory"},
    )
    reference: int = of(SimilarityOptions, "reference")
    map: tuple[Literal["pca", "umap", "none"], ...] | None = Field(
        None,
        description="2-D map of outputs: pca, umap, none; may be repeated; by default pca, with "
        "text",
        json_schema_extra={"setting": "maps"},
    )
    map_points: int = of(SimilarityOptions, "map_points")
    pdf: bool = False
    """figures for a paper too, in FOLDER/figures"""
    rows: int = Field(5, ge=0, description="pairs to print of each method; 0: all")

    @model_validator(mode="before")
    @classmethod
    def _of_run(cls, given: Any) -> Any:
        """A run alone names model and text."""
        model = str(given.get("model"))
        if given.get("text") is not None or not _is_run(model):
            return given
        from moescope.run.manifest import read_manifest

        known = read_manifest(Path(model)).model
        own = {n: known[n] for n in ("revision", "dtype") if known.get(n) is not None}
        return {**own, **given, "model": str(known["name"]), "text": model}

    @model_validator(mode="after")
    def _go_together(self) -> Self:
        if self.text is None or _is_run(self.text):
            what = "a model without text" if self.text is None else self.text
            if self.reading():
                raise BadInputError(
                    f"`{self.reading()[0]}` says how a corpus is read, and {what} brings none to "
                    "be read so; leave it out, or give MODEL CORPUS"
                )
        if self.out is None and not _is_run(self.text):
            raise BadInputError("say where the results go: -o FOLDER")
        self.require_columns(_HEADS)
        return self

    def folder(self) -> Path:
        """Where to write."""
        return Path(str(self.text)) / "similarity" if self.out is None else usable_path(self.out)

    def source(self) -> CorpusSpec | AnalyzedRun | None:
        """The text."""
        from moescope.metrics.runs import open_run

        if self.text is None:
            return None
        return open_run(self.text) if _is_run(self.text) else self.corpus_spec(self.text)

    def options(self) -> SimilarityOptions:
        """What is compared."""
        maps = self.map if self.map is not None else ("pca",) if self.text is not None else ()
        chosen: Any = tuple(dict.fromkeys(kind for kind in maps if kind != "none"))
        return SimilarityOptions(
            methods=tuple(dict.fromkeys(self.method)), layers=self.layers, tokens=self.total_tokens,
            window_tokens=self.window, seed=self.seed, memory=parse_memory(self.output_memory),
            reference=self.reference, maps=chosen, map_points=self.map_points,
        )  # fmt: skip


@verb(marks=("measured.jsonl",))
def similarity(settings: SimilarityArgs, resume: bool) -> None:
    """Compare the experts of each layer: outputs on identical inputs, weights, router rows.

    Give MODEL and a CORPUS, MODEL and a RUN, or a RUN alone, whose model and text are then used.
    cosine and cka (linear CKA) compare outputs on the same tokens; weights and router compare
    parameters and need no text. Writes result.json, tables and similarity.html, and prints the most
    similar pairs.

    Example: moescope similarity allenai/OLMoE-1B-7B-0924 texts/ -o alike --layers 1,7 --method cka
    """
    options, folder, source = settings.options(), settings.folder(), settings.source()
    from moescope.measure.journal import hold
    from moescope.report.contents import renew_contents
    from moescope.report.figures import require_matplotlib
    from moescope.report.similarity_figures import write_similarity_figures
    from moescope.report.similarity_page import write_similarity_page
    from moescope.similarity.compare import compare_experts as compare
    from moescope.similarity.result import SIMILARITY

    if settings.pdf:
        require_matplotlib()
    reads = [source.path] if isinstance(source, CorpusSpec) else []
    with hold(folder, SIMILARITY, reads=reads, resume=resume):
        with progress(f"loading {settings.model}") as show:
            loaded = settings.load(on_progress=show)
            settings.begin(folder)
            made = compare(
                loaded, source, options, trace_options=settings.trace_options(),
                folder=folder, resume=resume, on_progress=show,
            )  # fmt: skip
        made.save(folder)
        _warn(made)
        page = write_similarity_page(
            made, folder / "similarity.html", asked("similarity", settings)
        )
        renew_contents(folder, note)
        if settings.pdf:
            for path in write_similarity_figures(made, folder / "figures"):
                errors.print(str(path), soft_wrap=True)
    print_table(_top(made.pairs, settings.rows), settings, heads=_HEADS)
    errors.print(str(page), soft_wrap=True)


def _is_run(path: str | None) -> bool:
    return path is not None and (Path(path) / "manifest.json").is_file()


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
    return pa.table({n: pa.array([r[n] for r in shown]) for n in _HEADS})


def _warn(made: Similarity) -> None:
    """Say on stderr what was covered, and what was not."""
    from moescope.similarity.answers import similarity_notes

    text = made.about["text"]
    if text is not None:
        errors.print(
            f"{counted(text['tokens'], 'token')} of {counted(text['documents'], 'document')} from "
            f"{counted(len(text['domains']), 'domain')}"
        )
    for remark in similarity_notes(made.about):
        note(remark.text)
