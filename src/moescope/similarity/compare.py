"""How alike the experts of a layer are: outputs on identical inputs, weights, router rows, maps.

`compare_experts` runs some text through a model once, asks every expert of every layer what it
makes of the same tokens, and compares. Outputs are streamed: memory follows the budget, not the
number of experts times tokens (see `moescope.similarity.gram`). What the numbers mean, and what
they do not: docs/concepts/similarity.md.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from moescope.corpus import AnyText, CorpusSpec, as_text
from moescope.corpus.spelling import token_texts
from moescope.errors import BadInputError, ModelError
from moescope.measure.identity import identity
from moescope.measure.journal import open_journal
from moescope.measure.windows import choose_windows, run_windows
from moescope.metrics.runs import AnalyzedRun
from moescope.metrics.view import Rows
from moescope.models import AnyModel, LoadedModel, MoELayer, as_model
from moescope.models.expert_calls import ExpertLayer
from moescope.progress import OnProgress, Progress, quiet
from moescope.result import plain
from moescope.run.options import TraceOptions
from moescope.similarity.about import about_layers, about_options, about_text
from moescope.similarity.gram import TokenGroups
from moescope.similarity.inputs import (
    LayerSample,
    TokenSample,
    capture_inputs,
    take_tokens,
)
from moescope.similarity.layers import (
    OUTPUT_METHODS,
    LayerValues,
    compare_outputs,
    compare_parameters,
    cost,
)
from moescope.similarity.maps import (
    draw_map,
    neighbour_shares,
    require_umap,
    sample_outputs,
)
from moescope.similarity.options import SimilarityOptions
from moescope.similarity.pair_values import PairValues
from moescope.similarity.result import SIMILARITY, Similarity
from moescope.similarity.tables import (
    agreement_rows,
    nearest,
    pair_rows,
    summary_row,
)
from moescope.words import counted

LIFT = "coactivation_lift"
"""How a run's co-activation is called beside the methods."""

_STREAM = 8
_EMPTY = pa.table({})

Record = dict[str, Any]


def compare_experts(
    model: AnyModel,
    text: AnyText | AnalyzedRun | None = None,
    options: SimilarityOptions | None = None,
    *,
    trace_options: TraceOptions | None = None,
    folder: str | Path | None = None,
    resume: bool = False,
    on_progress: OnProgress = quiet,
) -> Similarity:
    """Compare the experts of each layer, pair by pair.

    Args:
        model: a hub id, a folder, a `ModelSpec`, or a `LoadedModel`.
        text: a path, a `CorpusSpec`, a list of texts; or a run, whose corpus is read again and
            whose co-activation is compared too. None where only weights and router rows are
            compared.
        options: see `SimilarityOptions`.
        trace_options: context, chat template and seed of the choice of text, for a corpus; a run
            has its own.
        folder: where each layer is kept when it is done, and where outputs lie while they are
            compared, if they do not fit into memory. By default nothing is kept, and outputs lie in
            the system's folder for temporary files.
        resume: go on with the layers that the folder does not hold.
        on_progress: told as the work goes on, in floating-point operations (an estimate).

    Raises:
        BadInputError: text is needed and none was given.
        ModelError: no method can be computed on this model, or a layer that it does not have.
        RunError: the run is of another model, or its corpus has changed; the folder holds another
            measurement.
        CorpusError: the text cannot be read, or is too short.
        CoverageError: a router or its experts were not seen.
        MissingExtraError: UMAP is wanted and not installed.
        WriteError: the disk is full.
    """
    options = options or SimilarityOptions()
    source = text if text is None or isinstance(text, AnalyzedRun) else as_text(text)
    made = _Comparison(as_model(model), source, options, trace_options, folder, on_progress)
    return made.result(resume)


class _Comparison:
    """One call of `compare_experts`."""

    def __init__(
        self,
        loaded: LoadedModel,
        text: CorpusSpec | AnalyzedRun | None,
        options: SimilarityOptions,
        trace_options: TraceOptions | None,
        folder: str | Path | None,
        on_progress: OnProgress,
    ) -> None:
        self.loaded, self.text, self.options = loaded, text, options
        self.trace_options = trace_options or TraceOptions()
        self.folder = None if folder is None else Path(folder)
        self.run = text if isinstance(text, AnalyzedRun) else None
        numbers = options.layers or (self.run.shape.layers if self.run else None)
        self.layers = loaded.anatomy.select(numbers)
        self.output_methods = tuple(m for m in options.methods if m in OUTPUT_METHODS)
        self.reads_text = bool(self.output_methods or options.maps)
        if "umap" in options.maps:
            require_umap()
        if self.reads_text and text is None:
            wanted = [*self.output_methods, *(f"a {m} map" for m in options.maps)]
            raise BadInputError(
                f"{' and '.join(wanted)} need text: give a corpus or a run, or compare "
                "`methods=weights` and `methods=router` only, with `maps=none`"
            )
        self._on_progress, self._done, self._total = on_progress, 0.0, 1.0

    def result(self, resume: bool) -> Similarity:
        """Everything."""
        sample = self._sample() if self.reads_text else None
        made_of = self._identity(sample)
        self._estimate(sample)
        pieces: list[Record] = []
        tables: dict[str, list[pa.Table]] = {"pairs": [], "points": []}
        with open_journal(self.folder, SIMILARITY, made_of, resume=resume) as journal:
            numbers = [layer.layer_idx for layer in self.layers]
            done = {n for n in numbers if journal.find("layer", n) is not None}
            inputs = {}
            if sample is not None and done != set(numbers):
                inputs = self._inputs(sample, done)
            for layer in self.layers:
                key = ("layer", layer.layer_idx)
                if layer.layer_idx not in done:
                    piece = self._layer(layer, sample, inputs.pop(layer.layer_idx, None))
                    journal.add(*key, **piece)
                record = journal.find(*key)
                assert record is not None
                pieces.append(record)
                for name, table in journal.tables(*key).items():
                    tables[name].append(table)
        about = {
            **about_options(self.loaded, self.options.model_dump(mode="json")),
            "text": None if sample is None else about_text(sample, self.text, self.trace_options),
            **about_layers(pieces),
        }
        if not about["summary"] and not about["maps"]:
            missing = about["layers"][0]["not_computed"]
            raise ModelError("; ".join(f"{m}: {why}" for m, why in missing.items()))
        return Similarity(_joined(tables["pairs"]), about, _joined(tables["points"]), made_of)

    def _identity(self, sample: TokenSample | None) -> dict[str, Any]:
        run = self.run
        return identity(
            self.loaded, [] if sample is None else sample.windows,
            layers=[layer.layer_idx for layer in self.layers],
            options=self.options.model_dump(mode="json", exclude={"layers"}),
            run=run.manifest.state.sha256 if run and run.manifest.state else None,
        )  # fmt: skip

    def _sample(self) -> TokenSample:
        tokens, longest = self.options.tokens, self.options.window_tokens
        self._say("reading text", 0.0)
        if self.run is not None:
            windows = run_windows(
                self.loaded, self.run, tokens_per_domain=tokens, window_tokens=longest
            )
            return take_tokens(windows, tokens, int(self.run.manifest.options["seed"]))
        assert isinstance(self.text, CorpusSpec)
        windows = choose_windows(
            self.loaded, self.text, tokens_per_domain=tokens, window_tokens=longest,
            options=self.trace_options,
        )  # fmt: skip
        return take_tokens(windows, tokens, self.trace_options.seed)

    def _estimate(self, sample: TokenSample | None) -> None:
        tokens = sample.num_tokens if sample else 0
        total = 2.0 * self.loaded.anatomy.active_params * tokens
        for layer in self.layers:
            functions = layer.num_experts + min(self.options.reference, layer.num_experts)
            work = cost(layer, tokens, functions, self.options.memory)
            total += work.output * functions if self.output_methods else 0.0
            total += work.cosine if "cosine" in self.output_methods else 0.0
            total += work.cka if "cka" in self.output_methods else 0.0
            total += work.weights if "weights" in self.options.methods else 0.0
        self._total = max(total, 1.0)

    def _inputs(self, sample: TokenSample, done: set[int]) -> dict[int, LayerSample]:
        per_token = 2.0 * self.loaded.anatomy.active_params
        return capture_inputs(
            self.loaded, self.layers, sample, done=done, budget=self.options.memory,
            folder=self.folder, on_tokens=lambda n: self._say("running the model", n * per_token),
        )  # fmt: skip

    def _layer(
        self, layer: MoELayer, sample: TokenSample | None, inputs: LayerSample | None
    ) -> dict[str, Any]:
        """Everything of one layer, as the journal keeps it."""
        name = f"layer {layer.layer_idx}"
        made = LayerValues({}, {}, [])
        given, points, maps = None, pa.table({}), list[Record]()
        if sample is not None and inputs is not None:
            given = inputs.given(layer.num_experts).sum(0)
            if self.output_methods:
                made = compare_outputs(
                    ExpertLayer(self.loaded.model, layer), inputs,
                    TokenGroups(sample.group_sizes), self.output_methods,
                    seed=self.options.seed, reference=self.options.reference,
                    budget=self.options.memory, folder=self.folder,
                    on_step=lambda what, n: self._say(f"{name}: {what}", n),
                )  # fmt: skip
            if self.options.maps:
                points, maps = self._map(layer, sample, inputs)
            inputs.hidden.close()
        self._say(f"{name}: weights and router", 0.0)
        known = compare_parameters(self.loaded, layer, self.options.methods)
        if "weights" in self.options.methods:
            self._say(f"{name}: weights and router", cost(layer, 0).weights)
        computed = made.values | known.values
        values: dict[str, PairValues] = {
            m: computed[m] for m in self.options.methods if m in computed
        }
        pairs, about = self._compared(layer, LayerValues(values, known.missing, made.notes), given)
        return {**about, "maps": maps, "tables": {"pairs": pairs, "points": points}}

    def _compared(
        self, layer: MoELayer, made: LayerValues, given: NDArray[np.int64] | None
    ) -> tuple[pa.Table, dict[str, Any]]:
        """The pairs of one layer, and the layer in short."""
        number, pairs = layer.layer_idx, Rows()
        lift = self._lift(number, layer.num_experts)
        summary, near = [], []
        for method, values in made.values.items():
            pair_rows(pairs, number, method, values, lift)
            summary.append(summary_row(number, method, values))
            who, how = nearest(values.value)
            near.append({"layer": number, "method": method, "expert": who, "value": how})
        matrices = {m: v.value for m, v in made.values.items()}
        if lift is not None:
            matrices[LIFT] = lift
        rng = np.random.default_rng([self.options.seed, _STREAM, number])
        never = [] if given is None else np.flatnonzero(given == 0).tolist()
        row = {
            "layer": number, "experts": layer.num_experts, "top_k": layer.top_k,
            "given": None if given is None else given.tolist(), "never_chosen": never,
            "undefined": {m: v.undefined for m, v in made.values.items() if v.undefined},
            "not_computed": made.missing, "notes": made.notes,
        }  # fmt: skip
        about = {
            "layers": [row], "summary": summary, "nearest": near,
            "agreement": agreement_rows(number, matrices, rng),
        }  # fmt: skip
        return _table(pairs), plain(about)

    def _lift(self, layer: int, experts: int) -> NDArray[np.float64] | None:
        """Lift of co-activation from the run's own table."""
        if self.run is None or layer not in self.run.shape.layers:
            return None
        table = self.run.table("coactivation")
        wanted = pc.and_(pc.equal(table["layer"], layer), pc.equal(table["phase"], "prefill"))
        rows = table.filter(wanted)
        lift = np.full((experts, experts), np.nan)
        lift[rows["expert_i"].to_numpy(), rows["expert_j"].to_numpy()] = rows["lift"].to_numpy()
        return lift

    def _map(
        self, layer: MoELayer, sample: TokenSample, inputs: LayerSample
    ) -> tuple[pa.Table, list[Record]]:
        """The points of a layer's maps, and each map in short."""
        rows, maps = Rows(), list[Record]()
        number, options = layer.layer_idx, self.options
        self._say(f"layer {number}: map", 0.0)
        points = sample_outputs(
            ExpertLayer(self.loaded.model, layer), inputs, options.map_points, options.seed
        )
        token = points.token
        known = np.unique(sample.token_id[token]).tolist()
        texts = dict(zip(known, token_texts(self.loaded.tokenizer, known), strict=True))
        spaces: dict[str, NDArray[Any]] = {"outputs": points.outputs}
        for kind in options.maps:
            drawn = draw_map(kind, points.outputs, options.seed)
            if drawn is None:
                continue
            spaces[kind] = drawn.xy
            maps.append({
                "layer": number, "map": kind, "points": len(token), "explained": drawn.explained,
                "parameters": drawn.parameters,
            })  # fmt: skip
            rows.add(
                layer=number, map=kind, x=drawn.xy[:, 0], y=drawn.xy[:, 1], expert=points.expert,
                weight=points.weight, domain=[sample.domains[d] for d in sample.domain[token]],
                doc=[sample.documents[d] for d in sample.doc[token]], pos=sample.pos[token],
                token_id=sample.token_id[token],
                token=[texts[int(t)] for t in sample.token_id[token]],
            )  # fmt: skip
        labels = {"expert": points.expert, "domain": sample.domain[token],
                  "token": sample.token_id[token]}  # fmt: skip
        found = neighbour_shares(spaces, labels, sample.doc[token])
        for about in maps:
            about["neighbours"] = [f for f in found if f["space"] in ("outputs", about["map"])]
        return _table(rows), plain(maps)

    def _say(self, what: str, operations: float) -> None:
        self._done = min(self._done + operations, self._total)
        experts = sum(layer.num_experts for layer in self.layers)
        work = f"{counted(experts, 'expert')} of {counted(len(self.layers), 'layer')}"
        self._on_progress(Progress(what, self._done, self._total, "FLOP", work=work))


def _joined(tables: list[pa.Table]) -> pa.Table:
    """Tables of layers as one; a column of which a layer knows nothing has no type there."""
    kept = [table for table in tables if table.num_columns]
    return pa.concat_tables(kept, promote_options="permissive").combine_chunks() if kept else _EMPTY


def _table(rows: Rows) -> pa.Table:
    """As Arrow columns; what is not known is null."""
    columns = rows.columns.items()
    return pa.table({name: pa.array(values, from_pandas=True) for name, values in columns})
