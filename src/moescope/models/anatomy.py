"""Where the routers and experts of a model are, and what they are like.

In transformers nearly every Mixture-of-Experts block holds a child ``experts`` and beside it
the router, a child ``gate`` or ``router``. `find_anatomy` looks at the modules themselves: config
files spell the layer pattern in a dozen ways, modules in one. Sizes (E, K) and scoring are then
*observed*: a short forward pass shows the shapes, and the router, copied and fed random numbers,
shows how it turns logits into weights. It works on a meta model too, so no weights are needed.

It does not know how captured routing is used, and never chooses experts.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from moescope.axes import require_layers
from moescope.errors import ModelError
from moescope.words import counted

if TYPE_CHECKING:
    from torch import nn

Scoring = Literal["softmax", "sigmoid", "sqrtsoftplus", "probabilities"]
"""How a router turns logits into scores: softmax over experts; sigmoid or sqrt(softplus) of each
logit on its own; or ``probabilities``: what the router returns first are probabilities already."""

_ROUTER_NAMES = ("gate", "router")
_LAYER_NUMBER = re.compile(r"(?:^|\.)(?:layers|blocks|h)\.(\d+)(?:\.|$)")

_OTHER_SENSES = re.compile(r"(?:^|[._])(?:vision|visual|audio|talker)")
"""Parts that text alone never reaches, such as experts for the tokens of an image."""

REFUSED = {
    "diffusion_gemma": (
        "it fills blocks of text in several steps of diffusion, so what a token was routed by in "
        "one pass cannot be read"
    ),
    "doge": (
        "its block computes expert weights inside one function and returns only logits, which it "
        "mixes across tokens; the weights that were really used cannot be read"
    ),
    "inkling2_loop_text": (
        "its middle layers run several times in one pass, so their routers decide several times "
        "for each token; a run keeps one decision, so the rest cannot be read"
    ),
    "qwen3_omni_moe": (
        "thinker and talker have no pass in common, so it cannot be read as one model; save its "
        "thinker by itself (Qwen3OmniMoeThinkerForConditionalGeneration), which can"
    ),
}
"""Model types that cannot be read honestly, with the reason."""


@dataclass(frozen=True)
class Site:
    """Where one MoE layer's modules are.

    Attributes:
        layer_idx: the model's own number of the decoder layer.
        block: dotted path of the module that holds router and experts.
        router: dotted path of the router.
        experts: dotted path of the experts, or of the block where a family keeps them in two parts.
        shared: dotted paths of shared (always active) experts.
    """

    layer_idx: int
    block: str
    router: str
    experts: str
    shared: tuple[str, ...]


@dataclass(frozen=True)
class MoELayer:
    """One MoE layer: its modules and its numbers.

    Attributes:
        site: where the modules are.
        num_experts: routed experts, E (including identity or null experts where a family has them).
        top_k: experts per token, K.
        hidden_size: D. expert_hidden_size: F, or None where experts have no single width.
        scoring: how logits become scores.
        normalized: the K weights of a token always have the same sum.
        selection_bias: choice and weighting differ (a bias added for selection only, or groups).
        expert_params: parameters of one routed expert (mean over experts).
        shared_params: parameters of the shared experts together.
        router_params: parameters of the router.
    """

    site: Site
    num_experts: int
    top_k: int
    hidden_size: int
    expert_hidden_size: int | None
    scoring: Scoring
    normalized: bool
    selection_bias: bool
    expert_params: float
    shared_params: int
    router_params: int

    @property
    def layer_idx(self) -> int:
        """The model's own number of this layer."""
        return self.site.layer_idx


@dataclass(frozen=True)
class Anatomy:
    """All MoE layers of a model, ascending, with what the model costs in parameters."""

    model_type: str
    layers: tuple[MoELayer, ...]
    num_decoder_layers: int
    total_params: int

    def __repr__(self) -> str:
        params = f"{self.total_params:,} parameters, {self.active_params:,} active"
        return f"<Anatomy {self.model_type}: {self.in_words}; {params}>"

    @property
    def in_words(self) -> str:
        """Layers, experts and experts per token, in a few words."""
        experts, chosen = (
            " or ".join(map(str, sorted(set(sizes))))
            for sizes in zip(*((m.num_experts, m.top_k) for m in self.layers), strict=True)
        )
        return f"{counted(len(self.layers), 'MoE layer')} × {experts} experts, {chosen} per token"

    @property
    def layer_numbers(self) -> tuple[int, ...]:
        """The model's own numbers of its MoE layers."""
        return tuple(layer.layer_idx for layer in self.layers)

    @property
    def active_params(self) -> int:
        """Parameters that one token meets: all, less the routed experts that it does not choose."""
        idle = sum((m.num_experts - m.top_k) * m.expert_params for m in self.layers)
        return round(self.total_params - idle)

    def describe(self, layers: tuple[MoELayer, ...]) -> dict[str, Any]:
        """What a manifest says of the model's layers, and of those of them that the run holds."""
        return {
            "decoder_layers": self.num_decoder_layers,
            "moe_layers": list(self.layer_numbers),
            "layers": [m.layer_idx for m in layers],
            "num_experts": [m.num_experts for m in layers],
            "top_k": [m.top_k for m in layers],
            "scoring": sorted({m.scoring for m in layers}),
            "normalized": sorted({m.normalized for m in layers}),
            "selection_bias": sorted({m.selection_bias for m in layers}),
            "total_params": self.total_params,
            "active_params": self.active_params,
        }

    def select(self, layer_numbers: tuple[int, ...] | None) -> tuple[MoELayer, ...]:
        """The layers with these numbers, or all.

        Raises:
            BadInputError: a number that is not an MoE layer of this model.
        """
        if layer_numbers is None:
            return self.layers
        require_layers(layer_numbers, self.layer_numbers, f"this {self.model_type} model")
        return tuple(layer for layer in self.layers if layer.layer_idx in set(layer_numbers))


def find_sites(model: nn.Module, model_type: str) -> tuple[Site, ...]:
    """Find every MoE layer by looking at the modules.

    Returns:
        The sites in ascending order of layer number.

    Raises:
        ModelError: a refused family, a dense model, or modules that cannot be told apart.
    """
    refuse_type(model_type)
    modules = dict(model.named_modules())
    sites = [site for path in modules if (site := _site_at(path, modules)) is not None]
    if not sites:
        raise ModelError(
            f"this {model_type} model has no Mixture-of-Experts layer: no module named 'experts' "
            "with a 'gate' or 'router' beside it; give an MoE model such as "
            "allenai/OLMoE-1B-7B-0924"
        )
    numbers = [site.layer_idx for site in sites]
    if len(set(numbers)) != len(numbers):
        raise ModelError(
            f"this {model_type} model has several routers in one layer ({sorted(numbers)}); "
            "it cannot be read without knowing which is which"
        )
    return tuple(sorted(sites, key=lambda site: site.layer_idx))


def refuse_type(model_type: str) -> None:
    """Raise a `ModelError` with the reason where models of this type cannot be read honestly."""
    if model_type in REFUSED:
        raise ModelError(f"model type {model_type!r} is not supported: {REFUSED[model_type]}")


def _site_at(path: str, modules: dict[str, nn.Module]) -> Site | None:
    parent, _, name = path.rpartition(".")
    match = _LAYER_NUMBER.search(path)
    if match is None or _OTHER_SENSES.search(path):
        return None
    if type(modules[path]).__name__ == "JetMoeMoE":
        return Site(int(match[1]), path, f"{path}.router", path, ())
    if name != "experts":
        return None
    routers = [f"{parent}.{n}" for n in _ROUTER_NAMES if f"{parent}.{n}" in modules]
    if len(routers) != 1:
        return None
    shared = _shared_experts(parent, modules)
    return Site(int(match[1]), parent, routers[0], path, shared)


def _shared_experts(block: str, modules: dict[str, nn.Module]) -> tuple[str, ...]:
    """Always-active experts, by name, in the block or beside it.

    Where router and experts sit in the decoder layer itself (Gemma 4), the plain ``mlp`` that
    runs next to them is the shared expert.
    """
    layer = block.rpartition(".")[0]
    found = []
    for path, module in modules.items():
        parent, _, name = path.rpartition(".")
        named = "shared" in name and "gate" not in name and parent in (block, layer)
        beside = name == "mlp" and parent == block
        if (named or beside) and any(True for _ in module.parameters()):
            found.append(path)
    return tuple(found)
