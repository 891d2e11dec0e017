"""`merge_runs`: finished runs joined into one, exactly.

Shards of one corpus become the run of that corpus: every document counted once, none missing,
which is checked and not assumed. Runs of different texts through the same model can be joined too,
as long as no document is in two of them. Whole numbers are exact. Sums of floats are added in one
fixed order (by shard, else by fingerprint), so the arguments may come in any order and the bytes
are the same. The model is not needed.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from moescope.corpus import Shard, in_shard, parse_shard
from moescope.errors import BadInputError, RunError
from moescope.files import nothing_of_bad_input
from moescope.progress import OnProgress, Progress, quiet
from moescope.run.commit import coverage, finish
from moescope.run.join import JoinedState
from moescope.run.manifest import (
    MANIFEST,
    Manifest,
    Merged,
    MergedPart,
    Stored,
    WholeCorpus,
    claim_run,
    read_manifest,
    write_manifest,
)
from moescope.run.reader import Run
from moescope.run.state import RunState
from moescope.run.store import copy_stored, understood, write_tensors
from moescope.words import brief, counted, listing

_MODEL_MAY_DIFFER = ("device", "name", "path", "revision")  # hashes say whether it is the same
_CORPUS_MAY_DIFFER = ("path", "shard")
_EACH_PART = ("token_budget", "limit")


class _Part(NamedTuple):
    """One run to be joined; ``shard`` is None for a run of a whole corpus."""

    path: Path
    manifest: Manifest
    shard: Shard | None

    @property
    def documents(self) -> int:
        return int(self.manifest.progress["documents_read"])


class _Plan(NamedTuple):
    """Parts in the order of joining, the number of shards (None: no shards), and those missing."""

    parts: list[_Part]
    shards: int | None
    missing: list[int]

    @property
    def whole(self) -> WholeCorpus | None:
        """Documents and fingerprint of the corpus that the shards were cut from."""
        return None if self.shards is None else self.parts[0].manifest.coverage.get("corpus")


def merge_runs(
    runs: Sequence[str | Path],
    out: str | Path,
    *,
    partial: bool = False,
    link: bool = False,
    on_progress: OnProgress = quiet,
) -> Path:
    """Join finished runs of one model into one run.

    Args:
        runs: folders of runs, in any order: shards of one corpus, or runs of different texts.
        out: folder to write: new, empty, or a merge that was interrupted.
        partial: join shards though some are missing; the run then says which.
        link: share the files of ``shards/`` on disk with the runs instead of copying them, where
            the file system can.
        on_progress: told which run is read.

    Returns:
        The folder of the joined run.

    Raises:
        RunError: a run is not finished or damaged; runs of different models, options or corpora; a
            shard given twice or missing; a document in two runs; ``out`` is taken.
        WriteError: the disk is full; the runs are untouched.
    """
    plan = _plan([Path(run) for run in runs], partial)
    with claim_run(out, reads=runs) as folder:
        _require_free(folder)
        with nothing_of_bad_input(folder):
            _merge(plan, folder, link=link, on_progress=on_progress)
        return folder


def _merge(plan: _Plan, out: Path, *, link: bool, on_progress: OnProgress) -> None:
    manifest = _manifest(plan)
    write_manifest(out, manifest)  # not a result before `finish`
    joined, texts = _join(plan, out, manifest, on_progress)
    _copy_shards(plan, out, manifest, link)
    _fill(manifest, plan, joined)
    file = f"aggregates/state-{manifest.progress['documents_read']:09d}.safetensors"
    sha = write_tensors(out / file, joined.to_arrays())
    manifest.state = Stored(file=file, sha256=sha, tokens=manifest.progress["tokens"])
    with understood("the vocabulary of the runs"):
        used = {str(i): texts[i] for i in joined.token_ids()}
    finish(out, manifest, joined, keep=manifest.options["keep"], texts=used)


def _plan(paths: Sequence[Path], partial: bool) -> _Plan:
    """Read the manifests, refuse what does not belong together, and fix the order."""
    if not paths:
        raise BadInputError("nothing to merge; give the folders of finished runs")
    parts = [_part(path) for path in paths]
    first = parts[0]
    for part in parts[1:]:
        _require_same(first, part, "model", _MODEL_MAY_DIFFER)
        _require_same(first, part, "options", ())
    if all(part.shard is None for part in parts):
        parts.sort(key=lambda p: (p.manifest.progress["fingerprint"], str(p.path)))
        return _Plan(parts, None, [])
    return _plan_shards(parts, partial)


def _part(path: Path) -> _Part:
    manifest = Run(path).manifest
    if manifest.source:
        raise RunError(f"{path} was imported; import all its files into one run instead")
    if manifest.merged is not None and manifest.merged.missing:
        raise RunError(
            f"{path} is a merge that lacks shards; merge the runs that it was made of, and the "
            "missing ones"
        )
    given = manifest.corpus.get("shard")
    return _Part(path, manifest, None if given is None else parse_shard(given))


def _require_same(first: _Part, other: _Part, what: str, but: Iterable[str]) -> None:
    """Refuse runs whose manifests differ in a section, and name the first difference."""
    mine, theirs = (getattr(p.manifest, what) for p in (first, other))
    for key in sorted({*mine, *theirs} - {*but}):
        if mine.get(key) != theirs.get(key):
            names = [str(p.manifest.model["name"]) for p in (first, other)]
            of = f" of {names[0]} and {names[1]}" if names[0] != names[1] else ""
            raise RunError(
                f"{first.path} and {other.path} are runs{of} with different {what} ({key}: "
                f"{brief(mine.get(key))} against {brief(theirs.get(key))}); only runs of the "
                "same model, options and rules of reading can be merged"
            )


def _plan_shards(parts: list[_Part], partial: bool) -> _Plan:
    first, seen = parts[0], dict[int, Path]()
    for part in parts:
        if part.shard is None or first.shard is None or part.shard.total != first.shard.total:
            names = [f"shard {p.shard}" if p.shard else "no shard" for p in (first, part)]
            raise RunError(
                f"{first.path} is {names[0]} and {part.path} is {names[1]}; merge shards of one "
                "cut with each other only"
            )
        if part.shard.number in seen:
            raise RunError(
                f"{seen[part.shard.number]} and {part.path} are both shard {part.shard}; give each "
                "shard once"
            )
        seen[part.shard.number] = part.path
        _require_one_corpus(first, part)
    assert first.shard is not None
    count = first.shard.total
    missing = [i for i in range(1, count + 1) if i not in seen]
    if missing and not partial:
        shown = listing(missing)
        raise RunError(
            f"{len(missing)} of {counted(count, 'shard')} are not there: {shown}; give them too, "
            "or merge what there is with `partial`"
        )
    parts.sort(key=lambda p: p.shard or Shard(0, 0))
    return _Plan(parts, count, missing)


def _require_one_corpus(first: _Part, part: _Part) -> None:
    """Shards must have read the same documents by the same rules, and left out the same."""
    _require_same(first, part, "corpus", _CORPUS_MAY_DIFFER)
    for key in ("corpus", "skipped_records"):
        mine, theirs = (p.manifest.coverage.get(key) for p in (first, part))
        if mine != theirs:
            numbers = [p.manifest.coverage["corpus"]["documents"] for p in (first, part)]
            raise RunError(
                f"{first.path} and {part.path} are shards of different texts ({numbers[0]} and "
                f"{counted(numbers[1], 'document')}, not the same ones); trace the shards of one "
                "corpus again"
            )


def _require_free(out: Path) -> None:
    """The folder may be new, or hold a merge that was interrupted."""
    if (out / MANIFEST).exists():
        old = read_manifest(out)
        if old.status == "complete" or old.merged is None:
            raise RunError(f"{out} already holds a run; give another folder")


def _manifest(plan: _Plan) -> Manifest:
    """What can be said before anything is joined."""
    all_of = [part.manifest for part in plan.parts]
    first = all_of[0]
    devices = sorted({str(m.model["device"]) for m in all_of})
    libraries = sorted({name for m in all_of for name in m.versions})
    versions = {n: sorted({m.versions[n] for m in all_of if n in m.versions}) for n in libraries}
    return Manifest(
        created=min(m.created for m in all_of),
        versions={name: ", ".join(found) for name, found in versions.items()},
        model={**first.model, "device": ", ".join(devices)},
        corpus=_corpus(plan),
        options=first.options,
        merged=Merged(
            shards=plan.shards,
            missing=plan.missing,
            each_part={name: first.options.get(name) for name in _EACH_PART},
            parts=[_describe(part) for part in plan.parts],
        ),
    )


def _describe(part: _Part) -> MergedPart:
    manifest = part.manifest
    assert manifest.state is not None
    return MergedPart(
        shard=None if part.shard is None else str(part.shard),
        corpus=str(manifest.corpus["path"]),
        fingerprint=str(manifest.progress["fingerprint"]),
        documents=part.documents,
        tokens=int(manifest.progress["tokens"]),
        created=manifest.created,
        state_sha256=manifest.state.sha256,
    )


def _corpus(plan: _Plan) -> dict[str, Any]:
    """The corpus of the joined run: that of the shards, or what different corpora agree on."""
    specs = [part.manifest.corpus for part in plan.parts]
    if plan.shards is not None or len(specs) == 1:
        return {**specs[0], "shard": None}
    agreed = {k: v for k, v in specs[0].items() if all(s.get(k) == v for s in specs)}
    names = [Path(str(spec["path"])).name or str(spec["path"]) for spec in specs]
    return {**agreed, "path": " + ".join(names)}


def _join(
    plan: _Plan, out: Path, manifest: Manifest, on_progress: OnProgress
) -> tuple[RunState, dict[int, str]]:
    """Add up the sums part by part, one in memory at a time; copy the rows of documents."""
    options, shape = manifest.options, Run(plan.parts[0].path).shape
    joined = JoinedState(shape, int(options["sample_tokens"]), int(options["seed"]))
    texts: dict[int, str] = {}
    owner: dict[str, Path] = {}
    for number, part in enumerate(plan.parts):
        on_progress(Progress(f"merging {part.path}", number, len(plan.parts), "runs"))
        run = Run(part.path)
        _require_own_documents(part, run.documents["doc"].to_pylist(), owner)
        joined.add(run.state)
        texts |= run.vocabulary
        [stored] = part.manifest.documents
        file = f"documents/{number:05d}.parquet"
        copy_stored(part.path, stored, out / file)
        manifest.documents.append(stored.model_copy(update={"file": file}))
    manifest.domains = joined.state.domains
    return joined.state, texts


def _require_own_documents(part: _Part, ids: list[str], owner: dict[str, Path]) -> None:
    """No document may be counted twice: a shard holds its own, whole runs share none."""
    if part.shard is not None:
        strange = next((i for i in ids if not in_shard(i, part.shard)), None)
        if strange is not None:
            raise RunError(
                f"{part.path} holds the document {brief(strange)}, which is not in its shard "
                f"{part.shard}; the run was altered, trace it again"
            )
        return
    for doc_id in ids:
        if doc_id in owner:
            raise RunError(
                f"{owner[doc_id]} and {part.path} both hold the document {brief(doc_id)}; it "
                "would be counted twice; give the texts ids of their own (`id_field`)"
            )
    owner.update(dict.fromkeys(ids, part.path))


def _copy_shards(plan: _Plan, out: Path, manifest: Manifest, link: bool) -> None:
    """Every kept token, in the order of the parts; rows name domains and documents by text."""
    for part in plan.parts:
        for stored in part.manifest.shards:
            file = f"shards/{len(manifest.shards):05d}.parquet"
            copy_stored(part.path, stored, out / file, link=link)
            manifest.shards.append(stored.model_copy(update={"file": file}))


def _fill(manifest: Manifest, plan: _Plan, joined: RunState) -> None:
    """Progress and coverage of the joined run, checked against its sums."""
    all_of = [part.manifest for part in plan.parts]
    tokens = sum(int(m.progress["tokens"]) for m in all_of)
    if not tokens:
        raise RunError(f"{plan.parts[0].path} and the others hold no token; nothing to merge")
    documents = sum(part.documents for part in plan.parts)
    whole = plan.whole
    # what reading `manifest.corpus` again by the same options would give: not so with a limit,
    # which each part applied by itself
    again = not plan.missing and (manifest.options.get("limit") is None or plan.shards == 1)
    manifest.progress = {
        "documents_read": documents,
        "tokens": tokens,
        "fingerprint": whole["fingerprint"] if whole is not None and again else "",
        "left_out": _sum(m.progress["left_out"] for m in all_of),
        "domain_tokens": _sum(m.progress["domain_tokens"] for m in all_of),
    }
    if spelt_out := _sum(m.progress.get("spelt_out", {}) for m in all_of):
        manifest.progress["spelt_out"] = spelt_out
    if unknown := _sum(m.progress.get("unknown_marks", {}) for m in all_of):
        manifest.progress["unknown_marks"] = unknown
    manifest.coverage = coverage(joined, tokens, ("prefill",))
    skipped = all_of[0].coverage["skipped_records"]
    if whole is None:
        skipped = _sum(m.coverage["skipped_records"] for m in all_of)
    else:
        manifest.coverage |= {"corpus": whole, "shards_missing": plan.missing}
        absent = int(whole["documents"]) - documents
        if absent < 0 or (absent and not plan.missing):
            raise RunError(
                f"the shards hold {counted(documents, 'document')} together, their corpus has "
                f"{whole['documents']}; a run was altered, trace its shard again"
            )
        if absent:
            skipped = {**skipped, "in a shard that was not merged": absent}
    manifest.coverage["skipped_records"] = skipped


def _sum(counts: Iterable[dict[str, int]]) -> dict[str, int]:
    total: Counter[str] = Counter()
    for each in counts:
        total.update(each)
    return dict(total)
