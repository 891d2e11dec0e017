"""Which experts work on one set of texts more than on another, and which of them to steer.

The risk difference of SteerMoE: Δ = P(expert active | token of the one) − P(active | token of the
other), with intervals and tests over documents, the part that token identity explains, and a
choice of experts on one half of the texts that is tested on the other.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from moescope.axes import ExpertRef
from moescope.corpus import AnyText
from moescope.errors import BadInputError
from moescope.intervene.contrast.result import CONTRAST, ContrastResult, Proposal
from moescope.intervene.contrast.statistics import (
    DocumentCounts,
    RateDifferences,
    compare_rates,
    rate_difference,
    smallest_p,
    token_part,
)
from moescope.intervene.contrast.texts import (
    BATCH_TOKENS,
    RoutedTexts,
    Span,
    TextSet,
    read_texts,
    route_texts,
    text_windows,
)
from moescope.measure.identity import describe_model, identity
from moescope.measure.journal import open_journal
from moescope.metrics.intervals import MIN_CLUSTERS
from moescope.metrics.statistics import benjamini_hochberg
from moescope.models.accept import AnyModel, as_model
from moescope.models.anatomy import MoELayer
from moescope.models.loading import LoadedModel
from moescope.plan import PlanSplit
from moescope.progress import OnProgress, quiet
from moescope.run.options import TraceOptions
from moescope.words import counted

HOLDOUT_DOCUMENTS = 20
"""With so many documents (pairs) on each side one half chooses experts and the other tests them."""

CANDIDATES = 10
"""Experts that are chosen by the size of their difference."""

TOKENS = 100_000
"""Budget of tokens of each set."""

LEVEL = 0.05
"""A candidate with a smaller q is confirmed."""


def contrast(
    model: AnyModel,
    with_texts: AnyText,
    without_texts: AnyText,
    *,
    paired: bool = False,
    span: Span = "all",
    holdout: bool | None = None,
    candidates: int = CANDIDATES,
    layers: Sequence[int] | None = None,
    tokens: int = TOKENS,
    options: TraceOptions | None = None,
    folder: str | Path | None = None,
    resume: bool = False,
    on_progress: OnProgress = quiet,
) -> ContrastResult:
    """Compare how often each expert is active on two sets of texts.

    Args:
        model: a hub id, a folder, a `ModelSpec`, or a `LoadedModel`.
        with_texts: texts with the property: a path, a `CorpusSpec`, or a list.
        without_texts: texts without it.
        paired: text n of the one belongs to text n of the other: pairs are compared, and labels
            swapped within pairs.
        span: for pairs, which tokens count: ``all``, those ``differing`` between the members, or
            those that they ``share`` (the same tokens in another context).
        holdout: choose experts on one half of the documents and test them on the other; by default
            with at least 20 documents (pairs) on each side.
        candidates: experts to choose, by the size of Δ.
        layers: the model's own numbers; all by default.
        tokens: budget of each set; whole documents, chosen by a hash of their id.
        options: context, chat template and seed.
        folder: where the routing of each batch is kept as it comes; None keeps nothing.
        resume: go on with what the folder holds.
        on_progress: told after each batch.

    Returns:
        See `ContrastResult`. Below 5 documents on a side there is no interval and no test, and so
        nothing is confirmed.

    Raises:
        CorpusError: texts that cannot be read, or sets of unequal size when paired.
        BadInputError: a span without pairs, or too few documents for a holdout.
        RunError: the folder holds another measurement.

    Example::

        found = contrast(model, ["She said yes.", …], ["She said no.", …], paired=True)
        found.to_pandas().nlargest(10, "delta")
    """
    options = options or TraceOptions()
    if span not in ("all", "differing", "shared"):
        raise BadInputError(f"span {span!r} is unknown; choose all, differing or shared")
    if span != "all" and not paired:
        raise BadInputError(f"`span` {span} compares the members of a pair; it needs `paired`")
    if candidates < 1 or tokens < 1:
        raise BadInputError("candidates and tokens must be at least 1")
    loaded = as_model(model)
    wanted = loaded.anatomy.select(None if layers is None else tuple(layers))
    sets = read_texts(
        loaded, with_texts, without_texts, paired=paired, span=span, tokens=tokens, options=options
    )
    halved = _holds_out(sets, holdout)
    numbers = [m.layer_idx for m in wanted]
    made_of = _identity(
        loaded, sets, layers=numbers, paired=paired, span=span, holdout=halved,
        candidates=candidates, seed=options.seed,
    )  # fmt: skip
    with open_journal(folder, CONTRAST, made_of, resume=resume) as journal:
        a, b = (
            route_texts(loaded, texts, wanted, journal, side, on_progress)
            for texts, side in zip(sets, ("with", "without"), strict=True)
        )
    return _result(loaded, wanted, sets, (a, b), made_of)


def _identity(
    loaded: LoadedModel, sets: tuple[TextSet, TextSet], **settings: Any
) -> dict[str, Any]:
    """What decides the numbers; documents without a token that counts are counted too."""
    with_windows, without_windows = (text_windows(texts)[0] for texts in sets)
    keys = hashlib.sha256(json.dumps([s.keys for s in sets]).encode()).hexdigest()
    return identity(
        loaded, [*with_windows, *without_windows],
        sides=[len(with_windows), len(without_windows)], documents=keys,
        batch_tokens=BATCH_TOKENS, **settings,
    )  # fmt: skip


def _holds_out(sets: tuple[TextSet, TextSet], asked: bool | None) -> bool:
    fewest = min(len(s.documents) for s in sets)
    if asked and fewest < 2 * MIN_CLUSTERS:
        raise BadInputError(
            f"`holdout` needs at least {2 * MIN_CLUSTERS} texts on each side, so that "
            f"{MIN_CLUSTERS} are left to test on; the smaller side has {fewest}"
        )
    return fewest >= HOLDOUT_DOCUMENTS if asked is None else asked


def _result(
    loaded: LoadedModel,
    layers: Sequence[MoELayer],
    sets: tuple[TextSet, TextSet],
    routed: tuple[RoutedTexts, RoutedTexts],
    made_of: dict[str, Any],
) -> ContrastResult:
    paired, halved = made_of["paired"], made_of["holdout"]
    candidates, seed = made_of["candidates"], made_of["seed"]
    a, b = (r.counts(layers) for r in routed)
    refs = [ExpertRef(m.layer_idx, e) for m in layers for e in range(m.num_experts)]
    families = [m.num_experts for m in layers]
    whole = compare_rates(a, b, paired=paired, seed=seed, families=families)
    parts, shared = _parts(routed, layers)
    q = benjamini_hochberg(whole.p)
    if halved:
        picked = _tested_apart(layers, sets, routed, (a, b), paired, candidates, seed)
    else:
        picked = _tested_together(whole, q, parts, candidates)
    names = ("rate_with", "rate_without", "delta", "ci_low", "ci_high", "p")
    columns: dict[str, NDArray[Any]] = {
        "layer": np.array([r.layer_idx for r in refs]),
        "expert": np.array([r.expert for r in refs]),
        "name": np.array([str(r) for r in refs]),
        **dict(zip(names, whole, strict=True)),
        "q": q,
        **parts,
    }
    return ContrastResult(
        model=describe_model(loaded),
        identity=made_of,
        columns=columns,
        proposals=tuple(_named(refs, picked)),
        num_documents=(len(sets[0].documents), len(sets[1].documents)),
        num_tokens=(int(a.tokens.sum()), int(b.tokens.sum())),
        shared_tokens=shared,
        paired=paired,
        span=made_of["span"],
        holdout=halved,
        seed=seed,
        notes=tuple(_notes(sets, (a, b), paired, halved, candidates)),
    )


def _parts(
    routed: tuple[RoutedTexts, RoutedTexts], layers: Sequence[MoELayer]
) -> tuple[dict[str, NDArray[np.float64]], tuple[float, float]]:
    """Columns of the tokens' part, and the share of tokens that it refers to."""
    a, b = routed
    made = [
        token_part(
            (a.token_id, b.token_id), (a.chosen[m.layer_idx], b.chosen[m.layer_idx]), m.num_experts
        )
        for m in layers
    ]
    names = ("delta_shared", "by_token")
    columns = {name: np.concatenate([getattr(part, name) for part in made]) for name in names}
    return columns, made[0].shared


class _Picked(NamedTuple):
    """Candidates: rows of the table, Δ that they were chosen by, and what the test said, (P,)."""

    rows: NDArray[np.int64]
    chosen_by: NDArray[np.float64]
    tested: RateDifferences
    q: NDArray[np.float64]
    parts: dict[str, NDArray[np.float64]]


def _largest(delta: NDArray[np.float64], number: int) -> NDArray[np.int64]:
    size = np.nan_to_num(np.abs(delta))
    order = np.argsort(-size, kind="stable")[:number]
    return order[size[order] > 0]


def _tested_together(
    whole: RateDifferences,
    q: NDArray[np.float64],
    parts: dict[str, NDArray[np.float64]],
    candidates: int,
) -> _Picked:
    rows = _largest(whole.delta, candidates)
    tested = RateDifferences(*(v[rows] for v in whole))
    return _Picked(rows, whole.delta[rows], tested, q[rows], {k: v[rows] for k, v in parts.items()})


def _tested_apart(
    layers: Sequence[MoELayer],
    sets: tuple[TextSet, TextSet],
    routed: tuple[RoutedTexts, RoutedTexts],
    counts: tuple[DocumentCounts, DocumentCounts],
    paired: bool,
    candidates: int,
    seed: int,
) -> _Picked:
    """Choose on one half of the documents, test on the other."""
    half = PlanSplit(seed=seed).first
    first = np.array(half(sets[0].keys))
    chosen_on = (first, first if paired else np.array(half(sets[1].keys)))
    one = [c.take(rows) for c, rows in zip(counts, chosen_on, strict=True)]
    other = [c.take(~rows) for c, rows in zip(counts, chosen_on, strict=True)]
    delta = rate_difference(one[0], one[1])
    rows = _largest(delta, candidates)
    # one test for each candidate, so the family of the correction is the candidates
    held = [DocumentCounts(c.counts[:, rows], c.tokens) for c in other]
    alone = [1] * len(rows)  # candidates of different layers lend each other nothing
    tested = compare_rates(held[0], held[1], paired=paired, seed=seed, families=alone)
    apart = [r.of_documents(~taken) for r, taken in zip(routed, chosen_on, strict=True)]
    parts, _ = _parts((apart[0], apart[1]), layers)
    q, own_parts = benjamini_hochberg(tested.p), {k: v[rows] for k, v in parts.items()}
    return _Picked(rows, delta[rows], tested, q, own_parts)


def _named(refs: Sequence[ExpertRef], picked: _Picked) -> list[Proposal]:
    t = picked.tested
    same_way = np.sign(t.delta) == np.sign(picked.chosen_by)
    columns = {
        "expert": np.asarray([str(refs[row]) for row in picked.rows]),
        "delta_chosen_on": picked.chosen_by,
        "delta": t.delta,
        "low": t.low,
        "high": t.high,
        "p": t.p,
        "q": picked.q,
        **picked.parts,
        "confirmed": (picked.q < LEVEL) & same_way,
    }
    rows = zip(*(values.tolist() for values in columns.values()), strict=True)
    return [Proposal(**dict(zip(columns, row, strict=True))) for row in rows]


def _notes(
    sets: tuple[TextSet, TextSet],
    counts: tuple[DocumentCounts, DocumentCounts],
    paired: bool,
    halved: bool,
    candidates: int,
) -> list[str]:
    """What a reader must know before believing a row."""
    sizes = [int((c.tokens > 0).sum()) for c in counts]
    what = "pairs" if paired else "texts"
    notes = []
    left = sum(s.left_out for s in sets)
    if left:
        notes.append(
            f"Left out, as the budget of tokens (`tokens`) was used up: {counted(left, 'text')}."
        )
    idle = [int((c.tokens == 0).sum()) for c in counts]
    if sum(idle):
        notes.append(
            f"No token counts in {counted(idle[0], 'text')} of the first set and {idle[1]} of the "
            "second."
        )
    if min(sizes) < MIN_CLUSTERS:
        notes.append(
            f"Fewer than {MIN_CLUSTERS} {what} on a side: no interval, no test, so nothing is "
            "confirmed; give more texts."
        )
        return notes
    tests = candidates if halved else counts[0].counts.shape[1]
    tested = [n // 2 for n in sizes] if halved else sizes
    least = smallest_p(tested[0], tested[1], paired, tests)
    if least > LEVEL / tests:
        notes.append(
            f"So few {what} give p = {least:.2g} at best, and a lone difference among {tests} "
            f"needs {LEVEL / tests:.2g}: only several together can pass; give more texts."
        )
    if not halved:
        notes.append(
            "Experts were chosen and tested on the same texts: their Δ is somewhat too large (q "
            f"is corrected for all {tests}). From {HOLDOUT_DOCUMENTS} {what} a side on, one half "
            "tests what the other chose."
        )
    return notes
