"""One prompt through a model under edits: the next token's logits, the routing, a continuation.

`look` makes one plain pass over the prompt; `write` lets the model go on with its own cache. Both
read the routing of chosen layers as it was really used. Nothing here compares.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from moescope.errors import ModelError
from moescope.intervene.steering.prompts import Prompt, pieces_of
from moescope.models.anatomy import MoELayer
from moescope.models.capture import Routing, RoutingCapture
from moescope.models.editing import edited
from moescope.models.edits import Edit
from moescope.models.loading import LoadedModel
from moescope.words import said_by


class LayerChoice(NamedTuple):
    """What one layer chose for T tokens.

    ``ids`` and ``weights`` (T, K) by descending weight; ``logits`` (T, E): the router's first
    output; ``eps``: the spacing of the weights' precision at 1.
    """

    ids: NDArray[np.int64]
    weights: NDArray[np.float64]
    logits: NDArray[np.float64]
    eps: float

    def chose(self, expert: int) -> NDArray[np.bool_]:
        """Which tokens chose an expert, (T,)."""
        found: NDArray[np.bool_] = (self.ids == expert).any(-1)
        return found


class Look(NamedTuple):
    """One pass over a prompt.

    ``logits`` (V,): of the next token, as the model gave them. ``choices``: by layer number, all
    tokens of the prompt.
    """

    logits: NDArray[np.float64]
    choices: dict[int, LayerChoice]


class Continuation(NamedTuple):
    """What the model wrote.

    ``token_ids``, ``pieces``: the tokens and the text of each. ``text``: all of it. ``ended``: an
    end token was written. ``choices``: by layer number, the tokens that were fed back (all but the
    last).
    """

    token_ids: tuple[int, ...]
    pieces: tuple[str, ...]
    text: str
    ended: bool
    choices: dict[int, LayerChoice]


@torch.inference_mode()
def look(
    loaded: LoadedModel, prompt: Prompt, layers: Sequence[MoELayer], edits: Sequence[Edit] = ()
) -> Look:
    """One pass over the prompt under these edits.

    Raises:
        ModelError: an edit that this architecture cannot take; says why.
    """
    model: Any = loaded.model
    ids = torch.tensor([prompt.ids], device=next(model.parameters()).device)
    last = {"logits_to_keep": 1} if _keeps_logits(model) else {}
    with edited(loaded, edits), RoutingCapture(model, [m.site for m in layers]) as capture:
        output = model(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False, **last)
        routing = capture.take(expected_rows=len(prompt))
    logits = output.logits[0, -1].double().cpu().numpy()
    return Look(logits, {n: _choice(r) for n, r in routing.items()})


def _keeps_logits(model: Any) -> bool:
    return "logits_to_keep" in inspect.signature(model.forward).parameters


def _choice(*passes: Routing) -> LayerChoice:
    ids = torch.cat([r.topk_ids.long() for r in passes])
    weights = torch.cat([r.topk_weights for r in passes])
    order = weights.float().argsort(dim=-1, descending=True, stable=True)
    return LayerChoice(
        ids.gather(-1, order).cpu().numpy(),
        weights.gather(-1, order).double().cpu().numpy(),
        torch.cat([r.logits for r in passes]).double().cpu().numpy(),
        torch.finfo(weights.dtype).eps,
    )


def write(
    loaded: LoadedModel,
    prompt: Prompt,
    layers: Sequence[MoELayer],
    edits: Sequence[Edit] = (),
    *,
    num_tokens: int,
    temperature: float = 0.0,
    seed: int = 0,
) -> Continuation:
    """Let the model go on under these edits.

    Args:
        loaded: the model.
        prompt: what it goes on from.
        layers: whose routing is read.
        edits: in force from the first token of the prompt to the end, unless they name positions.
        num_tokens: at most.
        temperature: 0 takes the most probable token; else tokens are drawn, with no other filter.
        seed: of the drawing.

    Raises:
        ModelError: the model cannot generate, or cannot take the edits.
    """
    model: Any = loaded.model
    ids = torch.tensor([prompt.ids], device=next(model.parameters()).device)
    sites = [m.site for m in layers]
    with (
        edited(loaded, edits),
        RoutingCapture(model, sites) as capture,
        torch.inference_mode(),
        torch.random.fork_rng(devices=[ids.device] if ids.device.type == "cuda" else []),
    ):
        torch.manual_seed(seed)
        made = _generate(loaded, ids, num_tokens, temperature)[0, ids.shape[1] :].tolist()
        steps = capture.take_steps()[1:] if sites else []
    ends = _end_ids(model)
    stop = next((i for i, t in enumerate(made) if t in ends), None)
    kept = made if stop is None else made[: stop + 1]
    fed = steps[: len(kept) - 1]
    return Continuation(
        tuple(kept),
        tuple(pieces_of(loaded.tokenizer, kept, prompt.ids)),
        _text(loaded.tokenizer, kept if stop is None else kept[:-1], prompt.ids),
        stop is not None,
        {n: _choice(*(s[n] for s in fed)) for n in (fed[0] if fed else {})},
    )


def _generate(
    loaded: LoadedModel, ids: torch.Tensor, num_tokens: int, temperature: float
) -> torch.Tensor:
    """The model's own generation; filters and penalties of its configuration are left out."""
    model: Any = loaded.model
    drawing: dict[str, Any] = (
        {"do_sample": True, "temperature": temperature, "top_k": 0, "top_p": 1.0}
        if temperature > 0
        else {"do_sample": False, "temperature": None, "top_k": None, "top_p": None}
    )
    try:
        made: torch.Tensor = model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=num_tokens,
            num_beams=1,
            use_cache=True,
            pad_token_id=loaded.pad_id,
            repetition_penalty=1.0,
            no_repeat_ngram_size=0,
            **drawing,
        )
    except (RuntimeError, ValueError, TypeError, NotImplementedError) as error:
        raise ModelError(
            f"this model cannot generate here ({said_by(error, 160)}); use `generate=0`"
        ) from error
    return made


def _end_ids(model: Any) -> frozenset[int]:
    given = getattr(model.generation_config, "eos_token_id", None)
    ids = given if isinstance(given, list) else [given]
    return frozenset(int(i) for i in ids if i is not None)


def _text(tokenizer: Any, ids: list[int], before: Sequence[int]) -> str:
    """The text that these tokens add to the prompt's."""
    lead = list(before[-8:])
    old, new = (
        str(tokenizer.decode(i, clean_up_tokenization_spaces=False)) for i in (lead, [*lead, *ids])
    )
    return new[len(old) :] if new.startswith(old) else str(tokenizer.decode(ids))
