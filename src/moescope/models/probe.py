"""Learn what a router does by asking it, not by reading its configuration.

A copy of the router with random weights is fed random hidden states on the CPU. Its answer shows
E and K; the ratio of two weights of one token shows the scoring (softmax: e^(zᵢ−zⱼ), sigmoid:
σ(zᵢ)/σ(zⱼ), …); whether the sum of a token's weights is the same for all tokens shows the
normalisation; whether the chosen are the best scores, with random selection biases, shows whether
something besides the scores decides. No weights of the model are needed.
"""

from __future__ import annotations

import copy
import inspect
from typing import Any, NamedTuple

import torch
from torch import nn

from moescope.errors import ModelError, lacks_memory
from moescope.models.anatomy import Anatomy, MoELayer, Scoring, Site, find_sites
from moescope.models.capture import Routing, read_router_output
from moescope.words import said_by

_ROWS = 64
_TOLERANCE = 1e-3
_LARGEST_ROUTER = 1 << 26
"""Its copy is float32 in memory; the largest that is known has some four million."""

_BY_FAMILY: dict[str, Scoring] = {"PhimoeTopKRouter": "softmax"}
"""Phi-MoE's sparsemixer takes a softmax over the near-best experts only, once for each of its two
choices, so no ratio test fits. The full softmax is still its distribution over experts."""


class RouterBehaviour(NamedTuple):
    """What a router was observed to do (see `MoELayer` for the meaning of each field)."""

    num_experts: int
    top_k: int
    scoring: Scoring
    normalized: bool
    selection_bias: bool


def find_anatomy(model: nn.Module, config: Any) -> Anatomy:
    """Find and observe all MoE layers of a model, real or on the meta device.

    Raises:
        ModelError: the model is dense, refused, or a router's answer is not understood.
    """
    text_config = config.get_text_config() if hasattr(config, "get_text_config") else config
    model_type = str(config.model_type)
    sites = find_sites(model, str(getattr(text_config, "model_type", model_type)))
    seen: dict[tuple[Any, ...], RouterBehaviour] = {}
    layers = []
    for site in sites:
        router = model.get_submodule(site.router)
        key = (type(router), *((n, tuple(p.shape)) for n, p in router.named_parameters()))
        if key not in seen:
            seen[key] = _observe(model, site, int(text_config.hidden_size))
        layers.append(_layer(model, site, seen[key], int(text_config.hidden_size)))
    return Anatomy(
        model_type=model_type,
        layers=tuple(layers),
        num_decoder_layers=int(text_config.num_hidden_layers),
        total_params=sum(p.numel() for p in model.parameters()),
    )


def _layer(model: nn.Module, site: Site, seen: RouterBehaviour, hidden: int) -> MoELayer:
    router, experts = model.get_submodule(site.router), model.get_submodule(site.experts)
    inside = {id(p) for p in router.parameters()} if site.experts == site.block else set()
    sizes = [p.numel() for p in experts.parameters() if id(p) not in inside and p.dim() > 1]
    return MoELayer(
        site=site,
        **seen._asdict(),
        hidden_size=hidden,
        expert_hidden_size=_expert_width(experts, hidden),
        expert_params=sum(sizes) / seen.num_experts,
        shared_params=sum(
            p.numel() for s in site.shared for p in model.get_submodule(s).parameters()
        ),
        router_params=sum(p.numel() for p in router.parameters()),
    )


def _expert_width(experts: nn.Module, hidden: int) -> int | None:
    for name, parameter in experts.named_parameters():
        if parameter.dim() == 3 and ("down" in name or "output" in name):
            sides = list(parameter.shape[1:])
            return int(sides[0] if sides[1] == hidden else sides[1])
    width = getattr(experts, "ffn_hidden_size", getattr(experts, "intermediate_size", None))
    return None if width is None else int(width)


def _observe(model: nn.Module, site: Site, hidden: int) -> RouterBehaviour:
    size = sum(p.numel() for p in model.get_submodule(site.router).parameters())
    if size > _LARGEST_ROUTER:
        raise ModelError(
            f"router {site.router} has {size:,} parameters, expected at most {_LARGEST_ROUTER:,}; "
            "check hidden_size and the number of experts in config.json"
        )
    generator = torch.Generator().manual_seed(0)
    router = _random_copy(model.get_submodule(site.router), generator, bias=0.0)
    biased = _random_copy(model.get_submodule(site.router), generator, bias=1.0)
    block = model.get_submodule(site.block)
    try:
        plain = _ask(router, block, hidden, generator, 0.0)
        swayed = _ask(biased, block, hidden, generator, 1.0)
    except ModelError as error:
        raise ModelError(f"router {site.router} ({type(router).__name__}): {error}") from error
    except Exception as error:
        if lacks_memory(error):
            raise
        raise ModelError(
            f"router {site.router} ({type(router).__name__}) does not answer random input "
            f"({said_by(error, 200)}); this architecture "
            "cannot be read yet, or its configuration names impossible numbers"
        ) from error
    scoring = _BY_FAMILY.get(type(router).__name__) or classify(plain)
    if scoring is None:
        raise ModelError(
            f"router {site.router} ({type(router).__name__}) weights experts in a way that matches "
            "no known scoring (softmax, sigmoid, sqrt-softplus); its probabilities would be wrong"
        )
    sums = plain.topk_weights.sum(-1)
    return RouterBehaviour(
        num_experts=plain.logits.shape[-1],
        top_k=plain.topk_ids.shape[-1],
        scoring=scoring,
        normalized=bool((sums.std() / sums.mean().abs().clamp_min(1e-12)) < _TOLERANCE),
        selection_bias=not (_picks_best(plain) and _picks_best(swayed)),
    )


def _random_copy(router: nn.Module, generator: torch.Generator, bias: float) -> nn.Module:
    """A float32 CPU copy with random weights; vectors are 1, biases ``bias`` × noise."""
    twin = copy.deepcopy(router).to_empty(device="cpu").float().eval()
    with torch.no_grad():
        for name, tensor in (*twin.named_parameters(), *twin.named_buffers()):
            if not tensor.is_floating_point():
                tensor.random_(0, 1, generator=generator)
            elif tensor.dim() >= 2:
                tensor.normal_(0.0, 1.5 / tensor.shape[-1] ** 0.5, generator=generator)
            elif "bias" in name:
                noise = torch.randn(tensor.shape, generator=generator)
                tensor.copy_(noise * bias)
            else:
                tensor.fill_(1.0)
    return twin


def _ask(
    router: nn.Module, block: nn.Module, hidden: int, generator: torch.Generator, bias: float
) -> Routing:
    rows_TD = torch.randn(_ROWS, hidden, generator=generator)
    extra = _extra_arguments(router, block, generator, bias)
    with torch.no_grad():
        for hidden_states in (rows_TD, rows_TD[None]):  # a few routers want a batch axis
            try:
                output = router(hidden_states, **extra)
            except (RuntimeError, IndexError, ValueError) as error:
                if lacks_memory(error):
                    raise
                continue
            if isinstance(output, torch.Tensor):  # logits alone: the block does the rest
                weights, ids = block.route_tokens_to_experts(output)  # type: ignore[operator]
                return Routing(output, ids, weights)
            return read_router_output(router, output)
    raise RuntimeError(f"it takes neither rows of {hidden} numbers nor a batch of them")


def _extra_arguments(
    router: nn.Module, block: nn.Module, generator: torch.Generator, bias: float
) -> dict[str, Any]:
    """What a router asks for besides hidden states: token ids, or a bias that its block holds."""
    extra: dict[str, Any] = {}
    for name in list(inspect.signature(router.forward).parameters)[1:]:
        if name == "input_ids":
            extra[name] = torch.zeros(1, _ROWS, dtype=torch.long)
        elif isinstance(held := getattr(block, name, None), torch.Tensor):
            extra[name] = torch.randn(held.shape, generator=generator) * bias
    return extra


def classify(routing: Routing) -> Scoring | None:
    """The scoring under which the observed weights follow from the observed logits, if any."""
    logits, weights = routing.logits.double(), routing.topk_weights.double()
    rows_sum = logits.sum(-1)
    if bool((logits >= 0).all()) and bool(((rows_sum - 1).abs() < _TOLERANCE).all()):
        return "probabilities"
    logs: dict[Scoring, torch.Tensor] = {
        "softmax": torch.log_softmax(logits, -1),
        "sigmoid": nn.functional.logsigmoid(logits),
        "sqrtsoftplus": 0.5 * nn.functional.softplus(logits).log(),
    }
    used = (weights > 0).all(-1)
    errors = {}
    for name, log_scores in logs.items():
        gap = weights[used].log() - log_scores.gather(-1, routing.topk_ids)[used]
        errors[name] = float((gap - gap.mean(-1, keepdim=True)).abs().max()) if used.any() else 1e9
    if routing.topk_ids.shape[-1] == 1:
        return _classify_single(weights, logs, routing.topk_ids)
    best = min(errors, key=lambda name: errors[name])
    return best if errors[best] < _TOLERANCE else None


def _classify_single(
    weights: torch.Tensor, logs: dict[Scoring, torch.Tensor], ids: torch.Tensor
) -> Scoring | None:
    """K = 1 leaves no ratio inside a token: compare across tokens; a constant weight is mute."""
    if float(weights.std()) < _TOLERANCE:
        return "softmax"
    for name, log_scores in logs.items():
        gap = weights.log() - log_scores.gather(-1, ids)
        gap = gap[torch.isfinite(gap)]
        if gap.numel() > 1 and float(gap.std()) < _TOLERANCE:
            return name
    return None


def _picks_best(routing: Routing) -> bool:
    best = routing.logits.topk(routing.topk_ids.shape[-1], dim=-1).indices
    return bool(torch.equal(best.sort(-1).values, routing.topk_ids.sort(-1).values))
