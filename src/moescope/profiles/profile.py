"""Profiles of single experts, or of all: the run's facts and the measured ones, put together.

`profile_all` and `profile_expert` are the whole of it; `write_profiles` keeps them as JSON. The
model is loaded only when its part has not been measured before.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
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
from moescope.measure.windows import run_windows
from moescope.metrics.runs import AnalyzedRun, AnyRun, as_run
from moescope.models.as_model import AnyModel
from moescope.models.loading import LoadedModel, ModelSpec, load_model
from moescope.models.source import as_spec
from moescope.profiles.assemble import Assembly
from moescope.profiles.contexts import WindowTexts
from moescope.profiles.facts import Profile
from moescope.profiles.measure import measure
from moescope.profiles.routed import Routed
from moescope.profiles.speech import DEFAULT_PIPELINE, SpeechTags, tag_tokens
from moescope.profiles.stored import (
    FOLDER,
    StoredMeasures,
    keep_measures,
    measure_key,
    read_measures,
)

__all__ = ["ProfileOptions", "profile_all", "profile_expert", "profile_experts", "write_profiles"]

Stage = Callable[[str], None]
Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class ProfileOptions:
    """How profiles are made.

    Attributes:
        model: a hub id, a folder, a `ModelSpec` or a `LoadedModel`; None: the run's, as the run
            held it.
        use_model: False leaves out what needs the model (contributions, contexts, pushes,
            similarity, weights) and says so.
        tokens_per_domain: counted tokens of each domain to measure; None: as many as the run
            sampled.
        window_tokens: a longer window gives its first so many tokens.
        pipeline: spaCy pipeline for parts of speech; None leaves them out.
    """

    model: AnyModel | None = None
    use_model: bool = True
    tokens_per_domain: int | None = None
    window_tokens: int = 512
    pipeline: str | None = DEFAULT_PIPELINE


def profile_expert(
    run: AnyRun,
    expert: ExpertRef | str,
    options: ProfileOptions | None = None,
    *,
    on_stage: Stage | None = None,
    on_progress: Progress | None = None,
) -> Profile:
    """What one expert does, and how sure that is.

    Args:
        run: a finished run, or its folder.
        expert: ``L5E9``, or its reference.
        options: see `ProfileOptions`.
        on_stage: called with a few words when a stage begins.
        on_progress: called with measured tokens and tokens in all.

    Returns:
        See `Profile`; ``.to_dict()`` gives JSON values.

    Raises:
        BadInputError: the run has no such expert.
        ModelError: the model is not to be had, or cannot be measured.
        RunError: the model or the corpus is not the run's.

    Example::

        profile_expert("my-run", "L5E9").summary
    """
    return profile_experts(
        run, [expert], options, on_stage=on_stage, on_progress=on_progress
    )[0]  # fmt: skip


def profile_all(
    run: AnyRun,
    options: ProfileOptions | None = None,
    *,
    on_stage: Stage | None = None,
    on_progress: Progress | None = None,
) -> list[Profile]:
    """Profiles of every expert, by layer and number; see `profile_expert`."""
    return profile_experts(run, None, options, on_stage=on_stage, on_progress=on_progress)


def profile_experts(
    run: AnyRun,
    experts: Iterable[ExpertRef | str] | None,
    options: ProfileOptions | None = None,
    *,
    on_stage: Stage | None = None,
    on_progress: Progress | None = None,
) -> list[Profile]:
    """Profiles of these experts in order, each once, or of all (None); see `profile_expert`."""
    run, options = as_run(run), options or ProfileOptions()
    say = on_stage or (lambda _: None)
    if "tokens" in run.absent:
        raise RunError(
            f"{run.path} cannot say what an expert does: {run.absent['tokens']}; its table load "
            "says how often each is used"
        )
    routed = Routed(run)
    cells = routed.cells
    if experts is None:
        wanted = list(range(cells.total))
    else:
        refs = [e if isinstance(e, ExpertRef) else ExpertRef.parse(e) for e in experts]
        wanted = [cells.cell(ref) for ref in dict.fromkeys(refs)]
    measured = _measures(routed, options, say, on_progress) if options.use_model else None
    tags, why = _speech(routed, options.pipeline, say)
    say("putting profiles together")
    assembly = Assembly(routed, measured, tags, why)
    return [assembly.profile(cell) for cell in wanted]


def _measures(
    routed: Routed, options: ProfileOptions, say: Stage, on_progress: Progress | None
) -> StoredMeasures:
    """What the model says: read back, or measured now and kept."""
    run = routed.run
    given = options.model
    if given is not None and not isinstance(given, LoadedModel):
        given = as_spec(given)
    if options.tokens_per_domain is not None and options.tokens_per_domain < 1:
        raise BadInputError(f"tokens per domain must be 1 or more, got {options.tokens_per_domain}")
    tokens = options.tokens_per_domain or int(run.manifest.options["sample_tokens"])
    dtype = _dtype(run, given)
    key = measure_key(run, tokens, options.window_tokens, dtype)
    kept = read_measures(run, key)
    if kept is not None:
        return kept
    loaded = given if isinstance(given, LoadedModel) else _load(run, given, dtype, say)
    say("choosing text")
    try:
        windows = run_windows(
            loaded, run, tokens_per_domain=tokens, window_tokens=options.window_tokens
        )
    except (CorpusError, RunError) as error:
        raise type(error)(f"{error}; --no-model profiles without it") from error
    say("measuring all experts")
    seed = int(run.manifest.options["seed"])
    made = measure(loaded, windows, routed.cells, run.domains, on_progress)
    say("looking through the lens")
    settings = {
        "tokens_per_domain": tokens,
        "window_tokens": options.window_tokens,
        "dtype": loaded.dtype,
        "seed": seed,
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
    own = str(run.manifest.model.get("dtype") or "auto")
    if given is None or given.dtype == "auto":
        return own
    return given.dtype


def _load(run: AnalyzedRun, spec: ModelSpec | None, dtype: str, say: Stage) -> LoadedModel:
    model = run.manifest.model
    if spec is None:
        spec = ModelSpec(str(model.get("name")), model.get("revision"))
    say(f"loading {spec.model}")
    chosen = ModelSpec(spec.model, spec.revision, dtype, spec.device, spec.trust_remote_code)
    try:
        return load_model(chosen)
    except ModelError as error:
        raise ModelError(
            f"{error}; say with --model where the run's model is, or leave out what needs it with "
            "--no-model"
        ) from error


def _speech(routed: Routed, pipeline: str | None, say: Stage) -> tuple[SpeechTags | None, str]:
    """Tags of the sampled tokens, or why there are none."""
    if pipeline is None:
        return None, "parts of speech were not asked for"
    if routed.sampled is None:
        return None, "the run kept aggregates only; trace it with --keep sample or all"
    try:
        say("tagging parts of speech")
        return tag_tokens(routed.run, routed.sampled.tokens, pipeline), ""
    except (MissingExtraError, BadInputError) as error:
        return None, str(error)


def write_profiles(run: AnalyzedRun, profiles: Sequence[Profile], *, index: bool = False) -> Path:
    """Write one JSON for each profile under ``RUN/profiles``, and with ``index`` an index of all.

    Args:
        run: the run.
        profiles: what to write.
        index: write ``index.json`` too: expert, role, flags, sureness and summary of each.

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
            write_bytes(folder / "index.json", _json([_entry(p) for p in profiles]))
    return folder


def _entry(profile: Profile) -> dict[str, Any]:
    made = profile.to_dict()
    return {
        "expert": made["expert"],
        "summary": made["summary"],
        "role": made["role"],
        "flags": made["flags"],
        "sure": made["sure"],
        "load": made["load"]["load"],
        "file": f"{made['expert']}.json",
    }


def _json(value: Any) -> bytes:
    # half a surrogate pair in a token cannot be written as UTF-8
    text = json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False)
    return text.encode("utf-8", "backslashreplace")
