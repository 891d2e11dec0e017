"""Profiles of single experts, or of all: the run's facts and the measured ones, put together.

`profile_all` and `profile_expert` are the whole of it; `write_profiles` keeps them as JSON. The
model is loaded only when its part has not been measured before.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

from moescope.axes import ExpertRef
from moescope.corpus.spelling import token_texts
from moescope.errors import (
    BadInputError,
    CorpusError,
    MissingExtraError,
    ModelError,
    RunError,
)
from moescope.files import write_bytes
from moescope.measure.windows import require_model, run_windows
from moescope.metrics.runs import AnalyzedRun, AnyRun, open_run
from moescope.models.accept import AnyModel, as_model
from moescope.models.loading import LoadedModel, load_model
from moescope.models.spec import ModelSpec, as_spec
from moescope.profiles.contexts import WindowTexts
from moescope.profiles.facts import Profile, Profiles
from moescope.profiles.measure import measure
from moescope.profiles.options import ProfileOptions
from moescope.profiles.routed import Routed
from moescope.profiles.speech import SpeechTags, tag_tokens
from moescope.profiles.stored import (
    FOLDER,
    StoredMeasures,
    keep_measures,
    measure_key,
    read_measures,
)
from moescope.profiles.tables import profile_tables
from moescope.progress import OnProgress, Progress, quiet
from moescope.run.store import write_parquet


def profile_expert(
    run: AnyRun,
    expert: ExpertRef | str,
    options: ProfileOptions | None = None,
    *,
    model: AnyModel | None = None,
    on_progress: OnProgress = quiet,
) -> Profile:
    """What one expert does, and how sure that is.

    Args:
        run: a finished run, or its folder.
        expert: ``L5E9``, or its reference.
        options: see `ProfileOptions`.
        model: the run's model: a hub id, a folder, a `ModelSpec`, or a `LoadedModel`; by default as
            the run names and held it. It is loaded only for what is not measured yet.
        on_progress: told how far it is.

    Returns:
        See `Profile`; ``.to_dict()`` gives JSON values.

    Raises:
        BadInputError: the run has no such expert.
        ModelError: the model is not to be had, or cannot be measured.
        RunError: the model or the corpus is not the run's.

    Example::

        profile_expert("my-run", "L5E9").summary
    """
    return profile_experts(run, [expert], options, model=model, on_progress=on_progress)[0]


def profile_all(
    run: AnyRun,
    options: ProfileOptions | None = None,
    *,
    model: AnyModel | None = None,
    on_progress: OnProgress = quiet,
) -> Profiles:
    """Profiles of every expert, by layer and number; see `profile_expert`."""
    return profile_experts(run, None, options, model=model, on_progress=on_progress)


def profile_experts(
    run: AnyRun,
    experts: Iterable[ExpertRef | str] | None,
    options: ProfileOptions | None = None,
    *,
    model: AnyModel | None = None,
    on_progress: OnProgress = quiet,
) -> Profiles:
    """Profiles of these experts in order, each once, or of all (None); see `profile_expert`."""
    run, options = open_run(run), options or ProfileOptions()
    if "tokens" in run.absent:
        raise RunError(
            f"{run.path} cannot say what an expert does: {run.absent['tokens']}; its table load "
            "says how often each is used"
        )
    routed = Routed(run)
    cells = routed.cells
    wanted = list(range(cells.total)) if experts is None else cells.named(str(e) for e in experts)
    measured = _measures(routed, options, model, on_progress) if options.use_model else None
    tags, why = _speech(routed, options.pipeline, on_progress)
    on_progress(Progress("putting profiles together"))
    return profile_tables(routed, measured, tags, why, wanted)


def _measures(
    routed: Routed, options: ProfileOptions, model: AnyModel | None, on_progress: OnProgress
) -> StoredMeasures:
    """What the model says: read back, or measured now and kept."""
    run = routed.run
    given = model if model is None or isinstance(model, LoadedModel) else as_spec(model)
    if isinstance(given, LoadedModel):  # what is kept was measured with the run's own
        require_model(as_model(given), run)
    if options.tokens_per_domain is not None and options.tokens_per_domain < 1:
        raise BadInputError(f"tokens per domain must be 1 or more, got {options.tokens_per_domain}")
    tokens = options.tokens_per_domain or int(run.manifest.options["sample_tokens"])
    dtype = _dtype(run, given)
    key = measure_key(run, tokens, options.window_tokens, dtype)
    kept = read_measures(run, key)
    if kept is not None:
        return kept
    loaded = given if isinstance(given, LoadedModel) else _load(run, given, dtype, on_progress)
    on_progress(Progress("choosing text"))
    try:
        windows = run_windows(
            loaded, run, tokens_per_domain=tokens, window_tokens=options.window_tokens
        )
    except (CorpusError, RunError) as error:
        raise type(error)(f"{error}; `no_model` profiles without it") from error
    made = measure(loaded, windows, routed.cells, run.domains, on_progress)
    on_progress(Progress("looking through the lens"))
    settings = {
        "tokens_per_domain": tokens,
        "window_tokens": options.window_tokens,
        "dtype": loaded.dtype,
        "seed": int(run.manifest.options["seed"]),
    }
    return keep_measures(
        run,
        key,
        made,
        WindowTexts(windows, loaded.tokenizer),
        lambda ids: token_texts(loaded.tokenizer, ids),
        routed.cells,
        settings,
    )


def _dtype(run: AnalyzedRun, given: ModelSpec | LoadedModel | None) -> str:
    """The precision to measure in: as asked for, else that of the run."""
    if given is not None and given.dtype != "auto":
        return given.dtype
    return str(run.manifest.model.get("dtype") or "auto")


def _load(
    run: AnalyzedRun, spec: ModelSpec | None, dtype: str, on_progress: OnProgress
) -> LoadedModel:
    model = run.manifest.model
    if spec is None:
        spec = ModelSpec(str(model.get("name")), model.get("revision"))
    on_progress(Progress(f"loading {spec.model}"))
    try:
        return load_model(replace(spec, dtype=dtype), on_progress=on_progress)
    except ModelError as error:
        raise ModelError(
            f"{error}; say with `model` where the run's model is, or leave out what needs it with "
            "`no_model`"
        ) from error


def _speech(
    routed: Routed, pipeline: str | None, on_progress: OnProgress
) -> tuple[SpeechTags | None, str]:
    """Tags of the sampled tokens, or why there are none."""
    if pipeline is None:
        return None, "parts of speech were not asked for"
    if routed.sampled is None:
        return None, "the run kept aggregates only; trace it with `keep=sample` or all"
    try:
        on_progress(Progress("tagging parts of speech"))
        return tag_tokens(routed.run, routed.sampled.tokens, pipeline), ""
    except (MissingExtraError, BadInputError) as error:
        return None, str(error)


def write_profiles(run: AnalyzedRun, profiles: Profiles, *, index: bool = False) -> Path:
    """Write one JSON for each profile under ``RUN/profiles``, and with ``index`` what holds all.

    Args:
        run: the run.
        profiles: what to write.
        index: write the tables too, as ``NAME.parquet`` (see `moescope.profiles.columns`), and
            ``index.json``: expert, role, flags, sureness and summary of each.

    Returns:
        The folder.

    Raises:
        WriteError: disk full or no permission.
    """
    folder = run.path / FOLDER
    with run.writing():  # not flushed one by one: these can be made again
        for profile in profiles:
            content = _json(profile.to_dict())
            write_bytes(folder / f"{profile.expert}.json", content, flush=False)
        if index:
            for name, table in profiles.tables.items():
                write_parquet(folder / f"{name}.parquet", table)
            write_bytes(folder / "index.json", _json([_entry(p) for p in profiles]))
    return folder


def _entry(profile: Profile) -> dict[str, Any]:
    made = profile.to_dict()
    shown = {key: made[key] for key in ("expert", "summary", "role", "flags", "sure")}
    return {**shown, "load": made["load"]["load"], "file": f"{made['expert']}.json"}


def _json(value: Any) -> bytes:
    # half a surrogate pair in a token cannot be written as UTF-8
    text = json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False)
    return text.encode("utf-8", "backslashreplace")
