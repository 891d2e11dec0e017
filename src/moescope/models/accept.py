"""What people give for a model, made into what is needed: a path, a name, a model in memory.

`as_model` is the one way in for every public function that runs a model.
"""

from __future__ import annotations

from copy import deepcopy
from typing import Any

from torch import nn

from moescope.errors import BadInputError, ModelError
from moescope.models.loading import (
    LoadedModel,
    held_model,
    open_model,
    stored_in,
    weights_fingerprint,
)
from moescope.models.probe import find_anatomy
from moescope.models.source import require_usable
from moescope.models.spec import AnySpec, EngineName, ModelSpec

AnyModel = AnySpec | LoadedModel
"""What stands for a model wherever one is needed: how to load it, or one that is open."""

_NOT_WHOLE = (
    "this needs many passes of the model, so all its weights must be in memory; load it with "
    "load_model, in bfloat16 if memory is short"
)

_CHANGED = (
    "its weights were changed since it was opened, so its hashes are no longer its own; open it "
    "again: wrap_model(model, tokenizer), with a name of its own if it is to be told apart"
)


def as_model(
    given: AnyModel,
    *,
    engine: EngineName = "resident",
    batch_tokens: int | None = None,
    window: int | None = None,
) -> LoadedModel:
    """A model that is open; it is loaded where that is still to be done.

    Args:
        given: a hub id, a folder, a `ModelSpec`, or a `LoadedModel`.
        engine: ``resident`` where the whole model must be in memory, ``auto`` where its layers may
            stay on disk; see `open_model`.
        batch_tokens: see `open_model`.
        window: see `open_model`.

    Raises:
        BadInputError: it is something else.
        ModelError: it cannot be loaded; or it is open, but not whole or not what it was.
    """
    if isinstance(given, LoadedModel):
        if engine == "resident" and given.streamed is not None:
            raise ModelError(f"{given.spec.model}: {_NOT_WHOLE}")
        if given.is_changed:
            raise ModelError(f"{given.spec.model}: {_CHANGED}")
        return given
    return open_model(given, engine=engine, batch_tokens=batch_tokens, window=window)


def wrap_model(model: nn.Module, tokenizer: Any, name: str | None = None) -> LoadedModel:
    """A transformers model that is in memory already, to be given wherever a model is taken.

    It is used as it is, in its precision and on its device, and set to evaluation. Its hashes are
    taken now, by the same rules as those of a model that is loaded, so a run can be resumed with
    either, as long as weights, configuration and tokenizer are the same. Weights that are
    changed later are refused when the model is given next, if their fingerprint (64 elements of
    each parameter) shows it: wrap it again after every change.

    Args:
        model: a causal language model of transformers with MoE layers.
        tokenizer: its tokenizer, a fast one.
        name: how runs and messages call it; by default where it was loaded from.

    Raises:
        BadInputError: no model, or no tokenizer.
        ModelError: a dense model, an architecture that cannot be read, weights that are not in
            memory, or a tokenizer that cannot be used.

    Example::

        hf = AutoModelForCausalLM.from_pretrained("allenai/OLMoE-1B-7B-0924")
        model = wrap_model(hf, AutoTokenizer.from_pretrained("allenai/OLMoE-1B-7B-0924"))
        analyze(model, ["one text", "another"], "my-run")
    """
    config: Any = getattr(model, "config", None)
    if config is None or not hasattr(model, "parameters"):
        raise BadInputError(
            "wrap_model takes a model of transformers (AutoModelForCausalLM); got "
            f"{type(model).__name__}"
        )
    if not hasattr(tokenizer, "convert_ids_to_tokens"):
        raise BadInputError(
            "wrap_model takes the model's tokenizer (AutoTokenizer) as its second argument; got "
            f"{type(tokenizer).__name__}"
        )
    called = name or getattr(config, "_name_or_path", "") or f"{type(model).__name__} in memory"
    spec = ModelSpec(called)
    places = {p.device for p in model.parameters()}
    if len(places) != 1 or (place := places.pop()).type == "meta":
        raise ModelError(f"{called}: its weights must all be in the memory of one device")
    tokenizer = deepcopy(tokenizer)  # padding of earlier calls is no part of it
    require_usable(spec, tokenizer)
    tokenizer.backend_tokenizer.no_padding()
    tokenizer.backend_tokenizer.no_truncation()
    anatomy, digest = find_anatomy(model.eval(), config), weights_fingerprint(model)
    return held_model(spec, model, config, tokenizer, anatomy, digest, stored_in(config), place)
