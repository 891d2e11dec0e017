"""Where a model comes from: its name, configuration, tokenizer and folder, on the hub or here.

Every way in which transformers or the hub refuses ends in one line that says what to do.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from moescope.errors import (
    MissingExtraError,
    ModelError,
    MoescopeError,
    WriteError,
    lacks_memory,
)
from moescope.hub import is_name, telling, why_unreachable
from moescope.models.config_files import (
    CONFIG,
    TOKENIZER,
    check_config,
    fault_in,
)
from moescope.models.spec import ModelSpec, local_folder, near_folder
from moescope.models.stored import INDEX, SINGLE, weight_map
from moescope.progress import OnProgress, quiet

MAX_TOKEN_ID = 1 << 24
"""Far above the vocabulary of any known model."""

_TOKENIZER_FILES = ("tokeniz*", "vocab*", "merges.txt", "*.model", "*.tiktoken", "tekken.json")


class NoTokenizerError(ModelError):
    """There is no tokenizer that can be used; not that one is broken."""


def pinned(spec: ModelSpec) -> ModelSpec:
    """The same model at the commit that its revision names now, so that all files are of one.

    A folder is what it is; one of the hub's cache is called after its commit.

    Raises:
        ModelError: it is neither a folder nor a model that the hub gives.
    """
    from transformers.utils import cached_file

    folder = local_folder(spec.model)
    if folder is None:
        config = guard(spec, cached_file, spec.model, "config.json", revision=spec.revision)
        folder = Path(config).parent
    place = folder.absolute()
    return replace(spec, revision=place.name) if place.parent.name == "snapshots" else spec


def checkpoint_folder(spec: ModelSpec, on_progress: OnProgress = quiet) -> Path:
    """The weights on this disk, fetched from the hub if need be: what the index names, no more.

    Args:
        spec: the model.
        on_progress: told how much of it is here.

    Raises:
        ModelError: the hub does not give them, or the index cannot be read.
    """
    if (folder := local_folder(spec.model)) is not None:
        return folder
    folder = _fetched(spec, [SINGLE, INDEX], on_progress)
    if not (folder / SINGLE).is_file() and (folder / INDEX).is_file():
        names = sorted(set(weight_map(folder / INDEX).values()))
        folder = _fetched(spec, names, on_progress)
    return folder


def is_here(spec: ModelSpec) -> bool:
    """Are its weights on this disk, as far as can be told without the hub?"""
    from huggingface_hub import try_to_load_from_cache

    return local_folder(spec.model) is not None or any(
        isinstance(try_to_load_from_cache(spec.model, name, revision=spec.revision), str)
        for name in (SINGLE, INDEX)
    )


def _fetched(spec: ModelSpec, names: list[str], on_progress: OnProgress) -> Path:
    from huggingface_hub import snapshot_download

    found: str = guard(
        spec,
        snapshot_download,
        spec.model,
        revision=spec.revision,
        allow_patterns=names,
        tqdm_class=telling(spec.model, on_progress),
    )
    return Path(found)


def load_config(spec: ModelSpec) -> Any:
    """The configuration, from the hub or a folder.

    Raises:
        ModelError: there is none, or it cannot be read.
    """
    from transformers import AutoConfig
    from transformers.utils import cached_file

    folder = local_folder(spec.model)
    if folder is None:
        path = Path(guard(spec, cached_file, spec.model, "config.json", revision=spec.revision))
    elif not (path := folder / "config.json").is_file():
        raise ModelError(
            f"{spec.model}: this folder holds no config.json; expected a model saved with "
            "save_pretrained"
        )
    check_config(path, spec.model)
    return guard(
        spec,
        AutoConfig.from_pretrained,
        spec.model,
        reads=CONFIG,
        revision=spec.revision,
        trust_remote_code=spec.trust_remote_code,
    )


def load_tokenizer(spec: ModelSpec) -> Any:
    """The tokenizer, a fast one. Where a model has none, transformers may make up an empty one.

    Raises:
        NoTokenizerError: there is none, or only a slow one.
        ModelError: it is damaged, or a token has an id that no vocabulary reaches.
    """
    from transformers import AutoTokenizer

    folder = local_folder(spec.model)
    if folder is not None:
        found = [path for pattern in _TOKENIZER_FILES for path in folder.glob(pattern)]
        if not found:
            raise _no_tokenizer(spec)
        if odd := next((path for path in found if not path.is_file()), None):
            raise ModelError(f"{spec.model}/{odd.name} is not a regular file")
    tokenizer = guard(
        spec,
        AutoTokenizer.from_pretrained,
        spec.model,
        reads=TOKENIZER,
        revision=spec.revision,
        trust_remote_code=spec.trust_remote_code,
    )
    require_usable(spec, tokenizer)
    return tokenizer


def require_usable(spec: ModelSpec, tokenizer: Any) -> None:
    """Refuse a tokenizer that cannot tell which characters a token stands for.

    Raises:
        NoTokenizerError: a slow or empty one.
        ModelError: a token has an id that no vocabulary reaches.
    """
    if not getattr(tokenizer, "is_fast", False):
        raise NoTokenizerError(
            f"{spec.model}: only a slow tokenizer ({type(tokenizer).__name__}) was found; moescope "
            "needs a tokenizer.json to align tokens with text"
        )
    made = guard(spec, tokenizer, "Any text at all.", reads=TOKENIZER, add_special_tokens=False)
    if not made["input_ids"]:
        raise _no_tokenizer(spec)
    # arrays over the vocabulary reach to its last id, so one absurd id would take all memory
    token, last = max(tokenizer.get_vocab().items(), key=lambda pair: pair[1])
    if last >= MAX_TOKEN_ID:
        raise ModelError(
            f"{spec.model}/tokenizer.json: the token {token[:40]!r} has id {last}, expected ids "
            f"below {MAX_TOKEN_ID:,}"
        )


def _no_tokenizer(spec: ModelSpec) -> NoTokenizerError:
    return NoTokenizerError(
        f"{spec.model}: no tokenizer with this model; save the one it was trained with beside "
        "the weights (tokenizer.save_pretrained)"
    )


def guard(
    spec: ModelSpec, call: Any, *args: Any, reads: tuple[str, ...] = (), **kwargs: Any
) -> Any:
    """Call into transformers; what it fails with becomes one line, except for a lack of memory.

    Args:
        spec: the model.
        call: what is called.
        *args: its arguments.
        reads: the JSON files that it reads, which are named when they are at fault.
        **kwargs: more of its arguments.

    Raises:
        ModelError: it failed because of what was given.
        MissingExtraError: it needs a package that is not installed.
        WriteError: the disk is full.
    """
    if is_name(spec.model) and local_folder(spec.model) is None:
        why_unreachable()  # then only what is here already is looked for
    try:
        return call(*args, **kwargs)
    except MoescopeError:
        raise
    except Exception as error:
        if lacks_memory(error):  # the model is not at fault
            raise
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise WriteError(f"{spec.model} cannot be fetched: {error.strerror}") from error
        if isinstance(error, ImportError) and "accelerate" in str(error).lower():
            asks = f"reading the quantised model {spec.model}"
            raise MissingExtraError("accelerate", "quantized", asks) from error
        raise ModelError(_explain(spec, error, reads)) from error
    except BaseException as error:
        if type(error).__name__ != "PanicException":  # how a Rust library fails
            raise
        raise ModelError(_explain(spec, error, reads)) from error


def _explain(spec: ModelSpec, error: BaseException, reads: tuple[str, ...]) -> str:
    first = " ".join(str(error).split())
    if "trust_remote_code" in first:
        return f"{spec.model} brings its own Python code; if you trust it, add `trust_remote_code`"
    if Path(spec.model).exists():
        return fault_in(spec.model, reads, error)
    if isinstance(error, OSError) and "safetensors" not in first:
        if (why := why_unreachable()) is not None:
            return (
                f"{spec.model!r} is no folder here{near_folder(spec.model)}, and the hub cannot be "
                f"asked for it ({why}); give the folder of a model, or try again with a network"
            )
        return (
            f"{spec.model!r} is neither a folder here{near_folder(spec.model)} nor a model that "
            f"the hub gives: {first[:160]}"
        )
    return f"{spec.model} cannot be loaded: {first[:240]}"


def config_hash(config: Any) -> str:
    """A sha256 of a configuration, wherever its folder lies."""

    def without_place(value: Any) -> Any:
        if isinstance(value, dict):
            return {k: without_place(v) for k, v in value.items() if k != "_name_or_path"}
        return value

    return text_hash(json.dumps(without_place(json.loads(config.to_json_string(use_diff=False)))))


def text_hash(text: str) -> str:
    """A sha256 of a text; of JSON, whatever the order of its keys."""
    with contextlib.suppress(json.JSONDecodeError):
        text = json.dumps(json.loads(text), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()
