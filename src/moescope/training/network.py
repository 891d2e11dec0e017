"""A stock transformers model whose routers follow a recipe while it trains.

The modules, weights and file format are transformers' own. Only while a `Pass` is active do the
routers ask the recipe's rule, and only through a network made here do experts, attention and norms
take the faster arithmetic of `kernels`; what is saved is the stock model.
"""

from __future__ import annotations

from collections.abc import Callable
from contextvars import ContextVar
from dataclasses import dataclass, field
from types import MethodType
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812
from torch import nn

from moescope.models.anatomy import find_sites
from moescope.training import capacity as capacities
from moescope.training import routers
from moescope.training.kernels import causal_attention, rms_norm, sorted_experts
from moescope.training.recipe import Capacity, ModelRecipe, Recipe

_EXPERTS, _ATTENTION = "moescope_sorted", "moescope_causal"


@dataclass
class LayerRouting:
    """What one router did with one micro-batch.

    Attributes:
        layer_idx: the model's own layer number.
        router_logits: (T, E), float32, differentiable.
        routing: the rule's outcome, before capacity.
        topk_ids: ids after capacity, (T, K); E where empty or dropped.
        dropped: (T, K), or None without a capacity. rerouted: the same.
    """

    layer_idx: int
    router_logits: torch.Tensor
    routing: routers.Routing
    topk_ids: torch.Tensor
    dropped: torch.Tensor | None = None
    rerouted: torch.Tensor | None = None


@dataclass
class Pass:
    """One forward pass under the recipe's routing; collects what each layer did.

    Attributes:
        training: noise is drawn and the training capacity holds.
        sequences: sequences of the micro-batch.
        seed: of the noise, another for every micro-batch of every step.
        capacity_factor: None for no limit.
        stock: route as the saved stock model does, whatever the recipe says.
    """

    training: bool
    sequences: int
    seed: tuple[int, ...] = ()
    capacity_factor: float | None = None
    stock: bool = False
    layers: list[LayerRouting] = field(default_factory=list)


_ACTIVE: ContextVar[Pass | None] = ContextVar("moescope_lab_pass", default=None)


class Network:
    """The stock model, its routers under the recipe, and what training adds to them.

    Attributes:
        model: the transformers model.
        recipe: what it was built from.
        layer_numbers: the model's own numbers of its MoE layers.
        noise: noise weights by layer (noisy_topk), zero at first; not part of the saved model.
    """

    def __init__(self, model: Any, recipe: Recipe) -> None:
        self.model, self.recipe = model, recipe
        modules = dict(model.named_modules())
        sites = find_sites(model, model.config.model_type)
        self.layer_numbers = tuple(site.layer_idx for site in sites)
        self.routers: dict[int, Any] = {s.layer_idx: modules[s.router] for s in sites}
        self.noise: dict[int, nn.Parameter] = {}
        if recipe.router.kind == "noisy_topk" and recipe.router.noise:
            for layer_idx, router in self.routers.items():
                self.noise[layer_idx] = nn.Parameter(torch.zeros_like(router.weight.float()))
        for layer_idx, router in self.routers.items():
            router.forward = self._router_forward(layer_idx, router, router.forward)
        _quicken(model)

    def named_parameters(self) -> dict[str, nn.Parameter]:
        """Everything that training changes, by name; ``noise.L`` is not in the saved model."""
        named: dict[str, nn.Parameter] = dict(self.model.named_parameters())
        return named | {f"noise.{layer_idx}": p for layer_idx, p in self.noise.items()}

    def forward(self, tokens: torch.Tensor, how: Pass) -> torch.Tensor:
        """Final hidden states (T, D) of token ids (sequences, context); fills ``how.layers``."""
        token = _ACTIVE.set(how)
        try:
            output = self.model.model(tokens, use_cache=False)
        finally:
            _ACTIVE.reset(token)
        return output.last_hidden_state.flatten(0, 1)  # type: ignore[no-any-return]

    def head(self) -> torch.Tensor:
        """The weights of the language-model head, (V, D)."""
        return self.model.lm_head.weight  # type: ignore[no-any-return]

    def _router_forward(
        self, layer_idx: int, router: Any, stock: Callable[..., Any]
    ) -> Callable[..., Any]:
        def forward(hidden: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
            how = _ACTIVE.get()
            if how is None:
                return stock(hidden, *args, **kwargs)
            flat = hidden.reshape(-1, hidden.shape[-1]).float()
            logits = F.linear(flat, router.weight.float())
            done = LayerRouting(
                layer_idx, logits, self._route(layer_idx, flat, logits, how), logits
            )
            weights = self._limit(done, how)
            how.layers.append(done)
            return logits, weights.to(hidden.dtype), done.topk_ids

        return forward

    def _route(
        self, layer_idx: int, flat: torch.Tensor, logits: torch.Tensor, how: Pass
    ) -> routers.Routing:
        recipe, top_k = self.recipe, self.recipe.model.top_k
        kind = "topk" if how.stock and recipe.router.kind == "expert_choice" else recipe.router.kind
        if kind == "topk" or (kind == "noisy_topk" and layer_idx not in self.noise):
            return routers.topk_softmax(logits, top_k, normalize=recipe.normalize)
        if kind == "noisy_topk":
            noise = None
            if how.training:
                draw = np.random.default_rng([*how.seed, layer_idx]).integers(2**62)
                generator = torch.Generator().manual_seed(int(draw))
                noise = torch.randn(logits.shape, generator=generator).to(logits.device)
            noise_logits = F.linear(flat, self.noise[layer_idx])
            return routers.noisy_topk(logits, noise_logits, top_k, noise=noise)
        if kind == "switch":
            return routers.switch_top1(logits)
        if kind == "expert_choice":
            return self._expert_choice(logits, how)
        bias = self.routers[layer_idx].e_score_correction_bias
        return routers.sigmoid_bias(logits, bias, top_k, normalize=recipe.normalize)

    def _expert_choice(self, logits: torch.Tensor, how: Pass) -> routers.Routing:
        """Every expert chooses within each sequence."""
        recipe = self.recipe
        per_sequence = logits.view(how.sequences, -1, logits.shape[-1])
        take = capacities.expert_capacity(
            per_sequence.shape[1],
            recipe.model.num_experts,
            recipe.model.top_k,
            recipe.router.capacity_factor or 1.0,
            minimum=1,
        )
        parts = [routers.expert_choice(sequence, take) for sequence in per_sequence]
        joined = [
            None if column[0] is None else torch.cat(column) for column in zip(*parts, strict=True)
        ]
        return routers.Routing(*joined)  # type: ignore[arg-type]

    def _limit(self, done: LayerRouting, how: Pass) -> torch.Tensor:
        """Apply the capacity; returns the weights of the final assignment."""
        routing, given = done.routing, self.recipe.capacity
        done.topk_ids = routing.topk_ids_TK
        if given is None or how.capacity_factor is None or how.stock:
            return routing.topk_weights_TK
        num_tokens, num_experts = done.router_logits.shape
        groups = how.sequences if given.group == "sequence" else 1
        limit = capacities.expert_capacity(
            num_tokens // groups,
            num_experts,
            self.recipe.model.top_k,
            how.capacity_factor,
            given.minimum,
        )
        final = capacities.assign(
            routing.topk_ids_TK,
            routing.selection_scores_TE.detach(),
            limit,
            num_experts=num_experts,
            overflow=given.overflow,
            groups=groups,
        )
        done.topk_ids, done.dropped = final.topk_ids_TK, final.dropped_TK
        done.rerouted = final.rerouted_TK
        if self.recipe.router.kind == "sigmoid_bias" and not self.recipe.normalize:
            routing = routing._replace(router_probs_TE=done.router_logits.sigmoid())
        return _weights_after(routing, final.topk_ids_TK, self.recipe.normalize)


def _weights_after(
    routing: routers.Routing, topk_ids_TK: torch.Tensor, normalized: bool
) -> torch.Tensor:
    """Weights of the experts that a token got in the end.

    A dropped expert's share is lost to the residual, not spread over the others; an expert that
    stands in for a full one brings its own probability over the same denominator.
    """
    num_experts = routing.router_probs_TE.shape[1]
    held = topk_ids_TK < num_experts
    ids_TK = topk_ids_TK.clamp(max=num_experts - 1)
    probs_TK = routing.router_probs_TE.gather(1, ids_TK)
    if normalized:
        first_TK = routing.topk_ids_TK.clamp(max=num_experts - 1)
        probs_TK = probs_TK / routing.router_probs_TE.gather(1, first_TK).sum(-1, keepdim=True)
    same = topk_ids_TK == routing.topk_ids_TK
    return torch.where(same, routing.topk_weights_TK, probs_TK) * held


def build_network(
    recipe: Recipe, vocab_size: int, end_of_text: int, device: torch.device
) -> Network:
    """A new model with random weights, the same for the same seed."""
    from transformers import AutoModelForCausalLM

    config = stock_config(recipe, vocab_size, end_of_text)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(recipe.seed)
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
        network = Network(model, recipe)
        _start_routers(network)
    model.to(device)
    for parameter in network.noise.values():
        parameter.data = parameter.data.to(device)
    return network


def stock_config(
    recipe: Recipe, vocab_size: int, end_of_text: int, layers: int | None = None
) -> Any:
    """The stock configuration of the recipe's model, or of one with other ``layers``."""
    from transformers import AutoConfig

    settings = _config(recipe.model, recipe)
    return AutoConfig.for_model(
        recipe.model.architecture,
        vocab_size=vocab_size,
        eos_token_id=end_of_text,
        pad_token_id=end_of_text,
        bos_token_id=None,
        **{**settings, "num_hidden_layers": layers or recipe.model.num_hidden_layers},
    )


def _start_routers(network: Network) -> None:
    """Shazeer's noisy router starts at zero; the others as the model's other weights."""
    recipe = network.recipe
    scale = recipe.router.initial_scale
    if scale is None:
        scale = 0.0 if recipe.router.kind == "noisy_topk" else recipe.model.initializer_range
    for router in network.routers.values():
        nn.init.normal_(router.weight, std=scale) if scale else nn.init.zeros_(router.weight)


def _config(sizes: ModelRecipe, recipe: Recipe) -> dict[str, Any]:
    """The stock config's own words for the recipe's sizes."""
    shared: dict[str, Any] = {
        "hidden_size": sizes.hidden_size,
        "num_hidden_layers": sizes.num_hidden_layers,
        "num_attention_heads": sizes.num_attention_heads,
        "num_key_value_heads": sizes.num_key_value_heads or sizes.num_attention_heads,
        "num_experts_per_tok": sizes.top_k,
        "max_position_embeddings": sizes.max_position_embeddings,
        "tie_word_embeddings": sizes.tie_word_embeddings,
        "initializer_range": sizes.initializer_range,
        "rope_parameters": {"rope_type": "default", "rope_theta": sizes.rope_theta},
    }
    if sizes.architecture == "olmoe":
        own = {"num_experts": sizes.num_experts, "intermediate_size": sizes.intermediate_size}
        return shared | own | {"norm_topk_prob": recipe.normalize}
    if sizes.architecture == "mixtral":
        own = {"num_local_experts": sizes.num_experts, "intermediate_size": sizes.intermediate_size}
        return shared | own | {"sliding_window": None}
    width = sizes.shared_expert_size or 0
    if sizes.architecture == "qwen2_moe":
        return shared | {
            "num_experts": sizes.num_experts,
            "moe_intermediate_size": sizes.intermediate_size,
            "intermediate_size": width,
            "shared_expert_intermediate_size": width,
            "norm_topk_prob": recipe.normalize,
            "decoder_sparse_step": 1,
            "mlp_only_layers": [],
        }
    head = sizes.hidden_size // sizes.num_attention_heads
    return shared | {
        "num_key_value_heads": sizes.num_attention_heads,
        "n_routed_experts": sizes.num_experts,
        "num_local_experts": sizes.num_experts,
        "moe_intermediate_size": sizes.intermediate_size,
        "intermediate_size": width,
        "n_shared_experts": width // sizes.intermediate_size,
        "n_group": 1,
        "topk_group": 1,
        "norm_topk_prob": recipe.normalize,
        "routed_scaling_factor": 1.0,
        "first_k_dense_replace": 0,
        "q_lora_rank": None,
        "kv_lora_rank": max(8, sizes.hidden_size // 2),
        "qk_rope_head_dim": max(2, head // 4 * 2),
        "qk_nope_head_dim": max(2, head // 4 * 2),
        "v_head_dim": head,
    }


def _quicken(model: Any) -> None:
    """Switch experts, attention and norms of this instance to the arithmetic of `kernels`."""
    from transformers import AttentionInterface
    from transformers.integrations.moe import ALL_EXPERTS_FUNCTIONS

    ALL_EXPERTS_FUNCTIONS.register(_EXPERTS, _experts)
    AttentionInterface.register(_ATTENTION, _attention)
    model.set_experts_implementation(_EXPERTS)
    model.set_attn_implementation(_ATTENTION)
    for module in model.modules():
        if type(module).__name__.endswith("RMSNorm") and hasattr(module, "variance_epsilon"):
            module.forward = MethodType(_norm, module)


def _norm(module: Any, hidden: torch.Tensor) -> torch.Tensor:
    return rms_norm(hidden, module.weight, module.variance_epsilon)


def _experts(
    module: Any, hidden: torch.Tensor, topk_ids: torch.Tensor, topk_weights: torch.Tensor
) -> torch.Tensor:
    return sorted_experts(hidden, topk_ids, topk_weights, module.gate_up_proj, module.down_proj)


def _attention(
    _module: Any,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    **_: Any,
) -> tuple[torch.Tensor, None]:
    """Causal attention over whole sequences; with a mask or a cache, transformers' own SDPA."""
    batch, heads, length, width = query.shape
    groups = heads // key.shape[1]
    scale = scaling if scaling is not None else width**-0.5
    if groups > 1:
        key, value = (t.repeat_interleave(groups, dim=1) for t in (key, value))
    if attention_mask is not None or key.shape[2] != length:
        output = F.scaled_dot_product_attention(
            query, key, value, attn_mask=attention_mask, scale=scale
        )
    else:
        q, k, v = (t.reshape(batch * heads, length, t.shape[-1]) for t in (query, key, value))
        output = causal_attention(q, k, v, scale).view(batch, heads, length, -1)
    return output.transpose(1, 2).contiguous(), None


def capacity_factor(capacity: Capacity | None, training: bool) -> float | None:
    """The factor that holds in training or in evaluation."""
    if capacity is None:
        return None
    return capacity.train if training else capacity.evaluate
