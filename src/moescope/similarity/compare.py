"""How alike the experts of a layer are: outputs on identical inputs, weights, router rows, maps.

`compare_experts` runs some text through a model once, asks every expert of every layer what it
makes of the same tokens, and compares. Outputs are streamed: memory follows the budget, not the
number of experts times tokens (see `moescope.similarity.gram`). What the numbers mean, and what
they do not: docs/concepts/similarity.md.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

from moescope.corpus import AnyText, CorpusSpec, as_text
from moescope.corpus.spelling import token_texts
from moescope.errors import BadInputError, ModelError
from moescope.given import Seed
from moescope.measure.windows import choose_windows, run_windows
from moescope.metrics.runs import AnalyzedRun
from moescope.metrics.view import Rows
from moescope.models import AnyModel, LoadedModel, MoELayer, as_model
from moescope.models.expert_calls import ExpertLayer
from moescope.run.options import TraceOptions
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
    MAP_POINTS,
    MapKind,
    draw_map,
    neighbour_shares,
    require_umap,
    sample_outputs,
)
from moescope.similarity.pair_values import PairValues
from moescope.similarity.result import Similarity, plain
from moescope.similarity.tables import (
    PERMUTATIONS,
    add_q,
    agreement_rows,
    nearest,
    pair_rows,
    summary_row,
)

__all__ = ["LIFT", "METHODS", "Method", "SimilarityOptions", "SimilarityStep", "compare_experts"]

Method = Literal["cosine", "cka", "weights", "router"]

METHODS: tuple[Method, ...] = ("cosine", "cka", "weights", "router")
"""Every method."""

LIFT = "coactivation_lift"
"""How a run's co-activation is called beside the methods."""

_STREAM = 8


class SimilarityOptions(BaseModel):
    """What is compared, on how much text, in how much memory."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    methods: tuple[Method, ...] = Field(
        METHODS, min_length=1, description="cosine and cka of outputs; weights; router rows"
    )
    layers: tuple[int, ...] | None = Field(
        None,
        description="the model's own numbers of the MoE layers; all (of a run: its) by default",
    )
    tokens: int = Field(
        10_000, ge=2, description="tokens in all, spread evenly over domains; work grows with the "
        "square for CKA"
    )  # fmt: skip
    window_tokens: int = Field(
        128, ge=1, description="most tokens of one window of a document: shorter ones bring more "
        "documents, the unit of intervals"
    )  # fmt: skip
    seed: Seed = Field(0, description="of shuffled experts, map points and relabellings")
    memory: float = Field(
        1e9, ge=1e6, description="bytes for outputs and products beside the model; what does not "
        "fit goes to a file"
    )  # fmt: skip
    reference: int = Field(
        4, ge=0, description="experts with shuffled weights that answer too, as a reference"
    )
    maps: tuple[MapKind, ...] = Field((), description="two-dimensional maps of weighted outputs")
    map_points: int = Field(MAP_POINTS, ge=5, description="most points of a layer's map")


class SimilarityStep(NamedTuple):
    """What is being done, and floating-point operations done and to do (an estimate)."""

    what: str
    done: float
    total: float


def compare_experts(
    model: AnyModel,
    text: AnyText | AnalyzedRun | None = None,
    options: SimilarityOptions | None = None,
    *,
    trace_options: TraceOptions | None = None,
    folder: str | Path | None = None,
    on_step: Callable[[SimilarityStep], None] | None = None,
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
        folder: where outputs lie while they are compared, if they do not fit into memory; the
            system's folder for temporary files by default.
        on_step: called as the work goes on.

    Raises:
        BadInputError: text is needed and none was given.
        ModelError: no method can be computed on this model, or a layer that it does not have.
        RunError: the run is of another model, or its corpus has changed.
        CorpusError: the text cannot be read, or is too short.
        CoverageError: a router or its experts were not seen.
        MissingExtraError: UMAP is wanted and not installed.
        WriteError: the disk is full.
    """
    options = options or SimilarityOptions()
    source = text if text is None or isinstance(text, AnalyzedRun) else as_text(text)
    loaded = as_model(model)
    return _Comparison(loaded, source, options, trace_options, folder, on_step or _quiet).result()


class _Comparison:
    """One call of `compare_experts`."""

    def __init__(
        self,
        loaded: LoadedModel,
        text: CorpusSpec | AnalyzedRun | None,
        options: SimilarityOptions,
        trace_options: TraceOptions | None,
        folder: str | Path | None,
        on_step: Callable[[SimilarityStep], None],
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
                f"{' and '.join(wanted)} need text: give a corpus or a run, or compare --method "
                "weights and --method router only, with --map none"
            )
        self._on_step, self._done, self._total = on_step, 0.0, 1.0
        self.pairs, self.points = Rows(), Rows()
        self.summary: list[dict[str, Any]] = []
        self.agreement: list[dict[str, Any]] = []
        self.about_maps: list[dict[str, Any]] = []
        self.about_layers: list[dict[str, Any]] = []
        self.nearest: list[dict[str, Any]] = []

    def result(self) -> Similarity:
        """Everything."""
        sample = self._sample() if self.reads_text else None
        self._estimate(sample)
        inputs = self._inputs(sample) if sample is not None else {}
        for layer in self.layers:
            self._layer(layer, sample, inputs.pop(layer.layer_idx, None))
        if not self.summary and not self.about_maps:
            missing = self.about_layers[0]["not_computed"]
            raise ModelError("; ".join(f"{m}: {why}" for m, why in missing.items()))
        add_q(self.agreement)
        return Similarity(_table(self.pairs), self._about(sample), _table(self.points))

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

    def _inputs(self, sample: TokenSample) -> dict[int, LayerSample]:
        per_token = 2.0 * self.loaded.anatomy.active_params
        return capture_inputs(
            self.loaded, self.layers, sample, budget=self.options.memory, folder=self.folder,
            on_tokens=lambda n: self._say("running the model", n * per_token),
        )  # fmt: skip

    def _layer(
        self, layer: MoELayer, sample: TokenSample | None, inputs: LayerSample | None
    ) -> None:
        name = f"layer {layer.layer_idx}"
        made = LayerValues({}, {}, [])
        given = None
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
            self._map(layer, sample, inputs)
            inputs.hidden.close()
        self._say(f"{name}: weights and router", 0.0)
        known = compare_parameters(self.loaded, layer, self.options.methods)
        if "weights" in self.options.methods:
            self._say(f"{name}: weights and router", cost(layer, 0).weights)
        computed = made.values | known.values
        values: dict[str, PairValues] = {
            m: computed[m] for m in self.options.methods if m in computed
        }
        self._add(layer, LayerValues(values, known.missing, made.notes), given)

    def _add(self, layer: MoELayer, made: LayerValues, given: NDArray[np.int64] | None) -> None:
        number = layer.layer_idx
        lift = self._lift(number, layer.num_experts)
        for method, values in made.values.items():
            pair_rows(self.pairs, number, method, values, lift)
            self.summary.append(summary_row(number, method, values))
            who, how = nearest(values.value)
            self.nearest.append({"layer": number, "method": method, "expert": who, "value": how})
        matrices = {m: v.value for m, v in made.values.items()}
        if lift is not None:
            matrices[LIFT] = lift
        rng = np.random.default_rng([self.options.seed, _STREAM, number])
        self.agreement += agreement_rows(number, matrices, rng)
        never = [] if given is None else np.flatnonzero(given == 0).tolist()
        self.about_layers.append({
            "layer": number, "experts": layer.num_experts, "top_k": layer.top_k,
            "given": None if given is None else given.tolist(), "never_chosen": never,
            "undefined": {m: v.undefined for m, v in made.values.items() if v.undefined},
            "not_computed": made.missing, "notes": made.notes,
        })  # fmt: skip

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

    def _map(self, layer: MoELayer, sample: TokenSample, inputs: LayerSample) -> None:
        if not self.options.maps:
            return
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
            self.about_maps.append({
                "layer": number, "map": kind, "points": len(token), "explained": drawn.explained,
                "parameters": drawn.parameters,
            })  # fmt: skip
            self.points.add(
                layer=number, map=kind, x=drawn.xy[:, 0], y=drawn.xy[:, 1], expert=points.expert,
                weight=points.weight, domain=[sample.domains[d] for d in sample.domain[token]],
                doc=[sample.documents[d] for d in sample.doc[token]], pos=sample.pos[token],
                token_id=sample.token_id[token],
                token=[texts[int(t)] for t in sample.token_id[token]],
            )  # fmt: skip
        labels = {"expert": points.expert, "domain": sample.domain[token],
                  "token": sample.token_id[token]}  # fmt: skip
        found = neighbour_shares(spaces, labels, sample.doc[token])
        for about in self.about_maps:
            if about["layer"] == number:
                about["neighbours"] = [f for f in found if f["space"] in ("outputs", about["map"])]

    def _about(self, sample: TokenSample | None) -> dict[str, Any]:
        loaded = self.loaded
        made = {
            "versions": {n: version(n) for n in ("moescope", "torch", "transformers", "numpy")},
            "model": {
                "name": loaded.spec.model, "revision": loaded.revision,
                "model_type": loaded.anatomy.model_type, "dtype": loaded.dtype,
                "stored_dtype": loaded.stored_dtype, "device": loaded.device,
                "config_sha256": loaded.config_hash, "tokenizer_sha256": loaded.tokenizer_hash,
                "weights_sha256": loaded.weights_hash,
            },
            "options": self.options.model_dump(mode="json"),
            "text": None if sample is None else self._about_text(sample),
            "permutations": PERMUTATIONS,
            "layers": self.about_layers, "summary": self.summary, "agreement": self.agreement,
            "nearest": self.nearest, "maps": self.about_maps,
        }  # fmt: skip
        return dict(plain(made))

    def _about_text(self, sample: TokenSample) -> dict[str, Any]:
        run, tokens = self.run, Counter(sample.domain.tolist())
        documents = Counter(w.domain for w in {w.doc: w for w in sample.windows}.values())
        options = TraceOptions(**run.manifest.options) if run else self.trace_options
        corpus: Any = self.text
        return {
            "run": None if run is None else str(run.path),
            "run_state_sha256": run.manifest.state.sha256 if run and run.manifest.state else None,
            "corpus": run.manifest.corpus if run else corpus.model_dump(mode="json"),
            "context": options.context, "chat_template": options.chat_template,
            "count_template": options.count_template, "seed": options.seed,
            **({"chat_text": True} if options.chat_text else {}),
            "tokens": sample.num_tokens, "documents": len(sample.documents),
            "windows": len(sample.windows), "group_sizes": sample.group_sizes,
            "domains": [
                {"name": name, "tokens": tokens[d], "documents": documents[name]}
                for d, name in enumerate(sample.domains)
            ],
            "sample_sha256": sample.sha256,
        }  # fmt: skip

    def _say(self, what: str, operations: float) -> None:
        self._done = min(self._done + operations, self._total)
        self._on_step(SimilarityStep(what, self._done, self._total))


def _quiet(_step: SimilarityStep) -> None:
    pass


def _table(rows: Rows) -> pa.Table:
    """As Arrow columns; what is not known is null."""
    columns = rows.columns.items()
    return pa.table({name: pa.array(values, from_pandas=True) for name, values in columns})
