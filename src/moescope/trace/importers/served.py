"""The model that was served, as far as an import needs it: anatomy and tokenizer, no weights."""

from __future__ import annotations

from typing import Any, NamedTuple

from moescope.corpus import control_ids
from moescope.errors import ModelError
from moescope.models.anatomy import Anatomy, MoELayer
from moescope.models.loading import load_meta
from moescope.models.source import (
    NoTokenizerError,
    config_hash,
    load_config,
    load_tokenizer,
    pinned,
    text_hash,
)
from moescope.models.spec import AnySpec, ModelSpec, as_spec, local_folder


class ServedModel(NamedTuple):
    """What is known of the model without its weights.

    Attributes:
        name: hub id or folder.
        revision: what the hub gave, if it was the hub.
        anatomy: MoE layers, E, K, scoring.
        tokenizer: None when there is none beside the configuration.
        special_ids: control tokens, which never stand for text (`moescope.corpus.control`).
        vocab_size: rows of the embedding; None when the configuration does not say.
        config_sha256: of the configuration.
        tokenizer_sha256: of the tokenizer, if there is one.
    """

    name: str
    revision: str | None
    anatomy: Anatomy
    tokenizer: Any | None
    special_ids: frozenset[int]
    vocab_size: int | None
    config_sha256: str
    tokenizer_sha256: str | None


def open_served(model: AnySpec) -> ServedModel:
    """Read configuration and tokenizer of a model.

    A folder with a configuration alone will do: then token texts are not known, and special tokens
    are only those that the configuration names.

    Raises:
        ModelError: unknown model, dense model, an architecture that cannot be read, or a tokenizer
            that is there and damaged.
    """
    spec = pinned(as_spec(model))
    anatomy, config = load_meta(spec), load_config(spec)
    text = config.get_text_config()
    vocab_size = getattr(text, "vocab_size", None)
    tokenizer = _tokenizer(spec)
    return ServedModel(
        name=spec.model,
        revision=spec.revision,
        anatomy=anatomy,
        tokenizer=tokenizer,
        special_ids=_special_ids(tokenizer, text),
        vocab_size=vocab_size if isinstance(vocab_size, int) else None,
        config_sha256=config_hash(config),
        tokenizer_sha256=None
        if tokenizer is None
        else text_hash(tokenizer.backend_tokenizer.to_str()),
    )


def _tokenizer(spec: ModelSpec) -> Any | None:
    try:
        return load_tokenizer(spec)
    except NoTokenizerError:
        return None
    except ModelError:
        if local_folder(spec.model) is not None:
            raise  # it is there and broken
        return None


def _special_ids(tokenizer: Any | None, config: Any) -> frozenset[int]:
    """As a trace leaves them out; without a tokenizer those that the configuration names."""
    if tokenizer is not None:
        return control_ids(tokenizer)
    found: list[Any] = []
    for name in ("bos_token_id", "eos_token_id", "pad_token_id"):
        value = getattr(config, name, None)
        found += value if isinstance(value, list) else [value]
    return frozenset(i for i in found if isinstance(i, int))


def describe_served(served: ServedModel, layers: tuple[MoELayer, ...]) -> dict[str, Any]:
    """The model's part of a manifest; weights and precision are those of the engine, not known."""
    return {
        "name": served.name,
        "revision": served.revision,
        "model_type": served.anatomy.model_type,
        "config_sha256": served.config_sha256,
        "tokenizer_sha256": served.tokenizer_sha256,
        "weights_sha256": None,
        "dtype": None,
        "stored_dtype": None,
        "device": None,
        **served.anatomy.describe(layers),
    }
