"""The page of architectures: what is found in a tiny model of every type."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from tools.reference.markdown import bar, page, table


def architectures_page() -> str:
    """What is found in a tiny model of every Mixture-of-Experts type of transformers."""
    from tests.support.multimodal import MULTIMODAL
    from tests.support.tiny import COMPOSITE_MODEL_TYPES, DEPARTURES, SINCE

    from moescope.models.anatomy import REFUSED

    types = sorted(DEPARTURES.keys() - SINCE.keys())
    rows = [_architecture(model_type) for model_type in types]
    read = len(types) - len(REFUSED.keys() & set(types))
    out = [
        "# Architectures",
        "",
        f"The {len(types)} Mixture-of-Experts model types behind transformers' "
        "`AutoModelForCausalLM`",
        f"whose configuration is that of the text model; {read} are read, "
        f"{len(types) - read} refused.",
        "Everything in the table is observed on a tiny random model, without weights; a published",
        "checkpoint of the type may differ in what its configuration decides (which layers have",
        "experts, normalisation, shared experts). `moescope inspect MODEL` shows yours.",
        "",
        "- *MoE layers*: MoE layers of all decoder layers in the tiny model.",
        "- *scoring*: how logits become scores; see [decisiveness](../concepts/decisiveness.md).",
        "- *normalised*: the K weights of a token always have the same sum.",
        "- *selection bias*: something besides the scores decides who is chosen (a bias, groups,",
        "  a hash of the token).",
        "- *shared*: modules of always-active experts in a layer.",
        "",
    ]
    head = ["type", "MoE layers", "router class", "scoring", "normalised", "selection bias"]
    out += table([*head, "shared", "status"], rows)
    out += [
        "",
        "## Types of later versions of transformers",
        "",
        "Tested with that version as the types above are.",
        "",
    ]
    later = [[f"`{t}`", SINCE[t], _status(REFUSED.get(t))] for t in sorted(SINCE)]
    out += table(["type", "from transformers", "status"], later)
    out += [
        "",
        "## Types that wrap a text model",
        "",
        "Published checkpoints of these types carry a configuration with a text part, which is the",
        "one that is read.",
        "",
    ]
    pairs = sorted(COMPOSITE_MODEL_TYPES.items())
    out += table(["type", "read as"], [[f"`{a}`", f"`{b}`"] for a, b in pairs])
    out += [
        "",
        "## Types that also see or hear",
        "",
        "The whole model is loaded, with its towers, and given text alone: its text part runs as",
        "it does there. `internvl` and `mistral3` stand for all types that wrap whatever text",
        "model their configuration names.",
        "",
    ]
    senses = [[f"`{t}`", _multimodal_status(t)] for t in sorted({*MULTIMODAL, *_NOT_WHOLE})]
    out += table(["type", "status"], senses)
    return page(out)


_NOT_WHOLE = ("diffusion_gemma", "qwen3_omni_moe")
"""Multimodal types that are refused as a whole."""


def _multimodal_status(model_type: str) -> str:
    from moescope.models.anatomy import REFUSED

    return _status(REFUSED.get(model_type, REFUSED.get(f"{model_type}_text")))


def _architecture(model_type: str) -> list[str]:
    import torch
    from tests.support.tiny import tiny_config
    from transformers import AutoModelForCausalLM

    from moescope.errors import ModelError
    from moescope.models import find_anatomy

    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(tiny_config(model_type))
    try:
        anatomy = find_anatomy(model, model.config)
    except ModelError as error:
        return [f"`{model_type}`", *["–"] * 6, _status(str(error).partition(": ")[2])]
    layers = anatomy.layers

    def distinct(values: Iterable[Any]) -> str:
        return ", ".join(dict.fromkeys(_yes(v) for v in values))

    return [
        f"`{model_type}`",
        f"{len(layers)} of {anatomy.num_decoder_layers}",
        distinct(f"`{type(model.get_submodule(m.site.router)).__name__}`" for m in layers),
        distinct(m.scoring for m in layers),
        distinct(m.normalized for m in layers),
        distinct(m.selection_bias for m in layers),
        distinct(len(m.site.shared) for m in layers),
        "read",
    ]


def _status(reason: str | None) -> str:
    return "read" if reason is None else f"refused: {bar(reason)}"


def _yes(value: Any) -> str:
    return ("yes" if value else "no") if isinstance(value, bool) else str(value)
