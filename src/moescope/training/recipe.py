"""What a training run is: one YAML file, checked before anything is read or computed.

Unknown keys are refused, impossible combinations are named with what would work, and
`routing_notes` says at the start where the trained routing does not map to the stock model that is
saved. Paths in a recipe are relative to the recipe's own folder.
"""

from __future__ import annotations

import hashlib
import json
import math
from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from moescope.corpus import CorpusSpec
from moescope.given import MOST_EXPERTS
from moescope.training.part import Beta, Part, Weight

Architecture = Literal["olmoe", "mixtral", "qwen2_moe", "deepseek_v3"]
RouterKind = Literal["topk", "noisy_topk", "switch", "expert_choice", "sigmoid_bias"]

NO_NUMBERS = ("run", "name", "about")
"""The parts of a recipe that decide no number."""


class TokenizerRecipe(Part):
    """The tokenizer: one that exists, or a byte-level BPE trained on the training text."""

    path: str | None = None
    """Folder with a tokenizer.json; without it one is trained."""
    vocab_size: int = Field(8192, ge=300, le=1_000_000)
    """Size of the tokenizer to train."""
    characters_per_domain: int = Field(900_000, ge=1)
    """Text of each domain that it is trained on."""


class DataRecipe(Part):
    """Which text, and how it is dealt out."""

    train: CorpusSpec
    """Training corpus: a path, or a mapping with the settings of any corpus."""
    heldout: CorpusSpec | None = None
    """Held-out corpus; without it, documents are split by a hash of their id."""
    heldout_share: float = Field(0.1, gt=0, lt=1)
    """Share of documents held out when no held-out corpus is given."""
    heldout_tokens: int = Field(16_384, ge=1)
    """Held-out tokens of each domain that an evaluation reads."""
    context: int = Field(512, ge=2, le=10_000_000)
    """Tokens of one sequence; documents are packed end to end, each closed by the end-of-text."""
    mixture: Literal["equal", "proportional"] = "equal"
    """Every domain as often as any other, or by its size."""

    @model_validator(mode="before")
    @classmethod
    def _paths(cls, data: Any) -> Any:
        if isinstance(data, dict):
            wrap = {
                name: {"path": value}
                for name, value in data.items()
                if name in ("train", "heldout") and isinstance(value, str)
            }
            return {**data, **wrap}
        return data


class ModelRecipe(Part):
    """The stock architecture and its sizes."""

    architecture: Architecture = "olmoe"
    """olmoe; mixtral; qwen2_moe (a shared expert beside the routed ones); deepseek_v3."""
    hidden_size: int = Field(ge=8, le=200_000)
    """D."""
    intermediate_size: int = Field(ge=1, le=4_000_000)
    """F, of ONE expert."""
    num_hidden_layers: int = Field(ge=1, le=1000)
    """Decoder layers; every one has experts."""
    num_attention_heads: int = Field(ge=1)
    """Attention heads."""
    num_key_value_heads: int | None = Field(None, ge=1)
    """Key and value heads; as many as attention heads unless given."""
    num_experts: int = Field(ge=1, le=MOST_EXPERTS)
    """E, routed experts of a layer."""
    top_k: int = Field(ge=1)
    """K, experts of a token."""
    shared_expert_size: int | None = Field(None, ge=1, le=4_000_000)
    """Width of the expert that every token meets (qwen2_moe, deepseek_v3)."""
    max_position_embeddings: int = Field(1024, ge=2, le=1_000_000_000)
    """Longest text that the saved model claims."""
    tie_word_embeddings: bool = True
    """One matrix for the embedding and the head."""
    initializer_range: float = Field(0.02, gt=0)
    """Standard deviation of the first weights."""
    rope_theta: float = Field(10_000.0, gt=0)
    """Base of the rotary positions."""

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.top_k > self.num_experts:
            raise ValueError(
                f"top_k {self.top_k} is more than num_experts {self.num_experts}; "
                f"choose top_k from 1 to {self.num_experts}"
            )
        if self.hidden_size % self.num_attention_heads:
            raise ValueError(
                f"hidden_size {self.hidden_size} does not divide into "
                f"{self.num_attention_heads} attention heads"
            )
        if (self.hidden_size // self.num_attention_heads) % 2:
            raise ValueError(
                f"a head of {self.hidden_size // self.num_attention_heads} is odd; rotary "
                "positions need an even hidden_size / num_attention_heads"
            )
        if self.num_attention_heads % (self.num_key_value_heads or self.num_attention_heads):
            raise ValueError(
                f"num_key_value_heads {self.num_key_value_heads} does not divide "
                f"num_attention_heads {self.num_attention_heads}"
            )
        has_shared = self.architecture in ("qwen2_moe", "deepseek_v3")
        if has_shared and self.shared_expert_size is None:
            raise ValueError(f"{self.architecture} needs shared_expert_size")
        if self.shared_expert_size is not None and not has_shared:
            raise ValueError(
                f"{self.architecture} has no shared expert; drop shared_expert_size or choose "
                "qwen2_moe or deepseek_v3"
            )
        if self.architecture == "deepseek_v3" and (
            (self.shared_expert_size or 0) % self.intermediate_size
        ):
            raise ValueError(
                f"in deepseek_v3 shared_expert_size {self.shared_expert_size} must be a multiple "
                f"of intermediate_size {self.intermediate_size}"
            )
        return self


class RouterRecipe(Part):
    """How tokens and experts find each other in training."""

    kind: RouterKind = "topk"
    """topk; noisy_topk (Shazeer, KeepTopK); switch (top-1); expert_choice; sigmoid_bias."""
    normalize: bool | None = None
    """Do the K weights sum to 1? As the architecture does unless given; a single sigmoid score is
    never divided by itself."""
    noise: bool = True
    """noisy_topk: draw the noise. Off, it is a KeepTopK router without noise (for comparison)."""
    initial_scale: float | None = Field(None, ge=0)
    """Standard deviation of the first router weights; noisy_topk starts at 0, others as all."""
    capacity_factor: float | None = Field(None, gt=0)
    """expert_choice: every expert takes tokens · K · factor / E tokens of a sequence; null: 1."""


class Balance(Part):
    """What keeps the load even. Every weight is a number or a ramp {start, end, over}."""

    load_balancing: Weight = 0.0
    """Switch loss of every layer: E · Σ f_i P_i, 1 when even."""
    router_z: Weight = 0.0
    """Mean squared log-sum-exp of the router logits."""
    importance: Weight = 0.0
    """CV² of the summed gates (Shazeer)."""
    load: Weight = 0.0
    """CV² of the smooth load (Shazeer); noisy_topk with noise only."""
    bias_update: Weight = 0.0
    """sigmoid_bias: how far the selection bias moves each step."""
    scope: Literal["micro_batch", "global_batch"] = "micro_batch"
    """Balance every micro-batch, or only all micro-batches of a step together."""


class Capacity(Part):
    """How many tokens an expert takes at most; what is too much overflows."""

    train: float | None = Field(1.25, gt=0)
    """Factor in training: int(tokens · factor · K / E), at least `minimum`; null: no limit."""
    evaluate: float | None = Field(None, gt=0)
    """Factor in held-out evaluation; null: no limit, as the saved model runs."""
    overflow: Literal["drop", "reroute"] = "drop"
    """drop: the token passes on through the residual; reroute: the next most probable expert."""
    group: Literal["sequence", "micro_batch"] = "sequence"
    """Tokens that share one expert's capacity."""
    minimum: int = Field(4, ge=1)
    """The smallest capacity."""


class TrainRecipe(Part):
    """The optimization."""

    steps: int | None = Field(None, ge=1)
    """Optimizer steps."""
    tokens: int | None = Field(None, ge=1)
    """Instead of steps: training tokens in all."""
    sequences: int = Field(4, ge=1, le=10_000_000)
    """Sequences of one micro-batch."""
    micro_batches: int = Field(1, ge=1, le=10_000_000)
    """Micro-batches of one step; their mean gradient is applied."""
    learning_rate: float = Field(2e-3, gt=0)
    """Peak."""
    final_learning_rate: float = Field(2e-4, ge=0)
    """At the end of the cosine."""
    warmup: float = Field(0.04, ge=0, lt=1)
    """Share of the steps with a rising rate."""
    weight_decay: float = Field(0.1, ge=0)
    """AdamW, on matrices only."""
    betas: tuple[Beta, Beta] = (0.9, 0.97)
    """AdamW."""
    gradient_clip: float = Field(1.0, gt=0)
    """Largest norm of all gradients together."""
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    """bfloat16 keeps float32 masters; auto: bfloat16 where the processor multiplies it itself."""

    @model_validator(mode="after")
    def _one_length(self) -> Self:
        if (self.steps is None) == (self.tokens is None):
            raise ValueError("give exactly one of steps and tokens")
        return self


class RunRecipe(Part):
    """What changes no number: workers, how often to save and look."""

    workers: int | None = Field(None, ge=1, le=1000)
    """Micro-batches computed at the same time, one thread each; as many as torch has threads unless
    given. A single one computes with all threads, which may round differently than several do."""
    checkpoint_minutes: float = Field(3.0, gt=0)
    """Time between checkpoints to resume from."""
    log_every: int = Field(10, ge=1)
    """Steps between rows of routing statistics."""
    evaluate_every: int = Field(100, ge=1)
    """Steps between held-out evaluations."""
    keep: tuple[Annotated[float, Field(gt=0, le=1)], ...] = ()
    """Shares of the training at which the model is kept, such as [0.01, 0.1, 0.4]."""
    refresh_seconds: int = Field(15, ge=1)
    """How often the live page is written."""


class Recipe(Part):
    """A whole training run."""

    name: str = Field(max_length=500)
    """What it is called on its page."""
    about: str | None = Field(None, max_length=2000)
    """What to look for; said at the start and on its page."""
    seed: int = Field(0, ge=0)
    """Of the first weights, the order of the text and the noise."""
    tokenizer: TokenizerRecipe = Field(default_factory=TokenizerRecipe)
    data: DataRecipe
    model: ModelRecipe
    router: RouterRecipe = Field(default_factory=RouterRecipe)
    balance: Balance = Field(default_factory=Balance)
    capacity: Capacity | None = None
    train: TrainRecipe
    run: RunRecipe = Field(default_factory=RunRecipe)

    @property
    def step_tokens(self) -> int:
        """Tokens of one optimizer step."""
        return self.data.context * self.train.sequences * self.train.micro_batches

    @property
    def num_steps(self) -> int:
        """Optimizer steps in all."""
        return self.train.steps or max(1, round((self.train.tokens or 0) / self.step_tokens))

    @property
    def normalize(self) -> bool:
        """Whether a token's K weights sum to 1."""
        if self.router.kind == "sigmoid_bias":
            return self.model.top_k > 1  # s / s is 1 and teaches nothing: a single score stays
        if self.router.kind in ("switch", "expert_choice", "noisy_topk"):
            return self.router.kind == "noisy_topk"
        own = self.model.architecture == "mixtral"
        return own if self.router.normalize is None else self.router.normalize

    def identity(self) -> str:
        """A sha256 of all that decides the numbers (not `NO_NUMBERS`, not where text lies)."""
        content = self.model_dump(mode="json", exclude=set(NO_NUMBERS))
        for side in ("train", "heldout"):
            if content["data"][side]:
                content["data"][side].pop("path")
        content["tokenizer"].pop("path")
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()

    @model_validator(mode="after")
    def _combines(self) -> Self:
        _check_router(self)
        _check_balance(self)
        _check_capacity(self)
        if self.data.context > self.model.max_position_embeddings:
            raise ValueError(
                f"data.context {self.data.context} is longer than model.max_position_embeddings "
                f"{self.model.max_position_embeddings}"
            )
        return self


def _check_router(recipe: Recipe) -> None:
    kind, architecture, top_k = recipe.router.kind, recipe.model.architecture, recipe.model.top_k
    given, fixed = recipe.router.normalize, recipe.normalize
    if given is not None and given != fixed:
        of = f" with top_k {top_k}" if kind == "sigmoid_bias" else ""
        raise ValueError(
            f"router.kind {kind}{of} always has normalize: {str(fixed).lower()}; drop normalize"
        )
    if (kind == "sigmoid_bias") != (architecture == "deepseek_v3"):
        raise ValueError(
            f"router.kind {kind} does not map to the architecture {architecture}: sigmoid_bias is "
            "deepseek_v3's router, and deepseek_v3 has no other; choose the matching pair"
        )
    if kind == "switch" and top_k != 1:
        raise ValueError(
            f"router.kind switch sends a token to one expert; set model.top_k to 1, got {top_k}"
        )
    if architecture == "mixtral" and not fixed:
        raise ValueError(
            f"mixtral always normalizes the K weights, so router.kind {kind} with normalize: false "
            "does not map to it; choose olmoe or qwen2_moe, or normalize: true"
        )
    if fixed and top_k == 1:
        raise ValueError(
            "with top_k 1 a normalized weight is always 1 and the router gets no gradient; "
            "use router.kind switch, or top_k 2 or more"
        )
    if kind != "expert_choice" and recipe.router.capacity_factor is not None:
        raise ValueError("router.capacity_factor belongs to expert_choice; use capacity: instead")


def _check_balance(recipe: Recipe) -> None:
    balance, kind = recipe.balance, recipe.router.kind
    if balance.load != 0 and not (kind == "noisy_topk" and recipe.router.noise):
        raise ValueError(
            f"balance.load needs the noise of router.kind noisy_topk (got {kind}); "
            "use load_balancing or importance"
        )
    if balance.bias_update != 0 and kind != "sigmoid_bias":
        raise ValueError(f"balance.bias_update needs router.kind sigmoid_bias, got {kind}")
    if kind == "expert_choice" and (balance.load_balancing != 0 or balance.importance != 0):
        raise ValueError(
            "expert_choice balances by itself: every expert takes as many tokens; set "
            "balance.load_balancing and balance.importance to 0"
        )


def _check_capacity(recipe: Recipe) -> None:
    if recipe.capacity is None:
        return
    if recipe.router.kind == "expert_choice":
        raise ValueError(
            "expert_choice sets its own capacity (router.capacity_factor); drop capacity"
        )
    group = recipe.data.context
    if recipe.capacity.group == "micro_batch":
        group *= recipe.train.sequences
    for side in ("train", "evaluate"):
        factor = getattr(recipe.capacity, side)
        if (
            factor is not None
            and math.floor(group * factor * recipe.model.top_k / recipe.model.num_experts) < 1
        ):
            raise ValueError(
                f"capacity.{side} {factor} gives an expert less than one of {group} tokens; "
                f"it must be at least {recipe.model.num_experts / (group * recipe.model.top_k):.3g}"
            )


def routing_notes(recipe: Recipe) -> list[str]:
    """What a user must know before training: where the saved stock model routes differently."""
    notes = []
    if recipe.router.kind == "expert_choice":
        notes.append(
            "expert choice is not causal: which tokens an expert takes depends on later tokens, so "
            "its held-out loss flatters it. It maps to no stock architecture: the saved "
            f"{recipe.model.architecture} model routes by top-{recipe.model.top_k}. The page and "
            "the summary give the saved model's held-out loss, log/domains.parquet both."
        )
    if recipe.router.kind == "noisy_topk" and recipe.router.noise:
        notes.append(
            "the noise is drawn in training only; its weights are not part of the saved model, "
            "which routes by the clean logits."
        )
    capacity = recipe.capacity
    if capacity is not None and capacity.train is not None:
        notes.append(
            f"capacity factor {capacity.train:g} applies in training; the saved "
            f"{recipe.model.architecture} model has no capacity limit"
            + (
                f", which is the one whose held-out loss is shown; log/domains.parquet also has it "
                f"with a factor of {capacity.evaluate:g}."
                if capacity.evaluate is not None
                else "."
            )
        )
        if capacity.group == "micro_batch":
            notes.append(
                "capacity is shared by a whole micro-batch, so a sequence's routing depends on the "
                "sequences before it."
            )
    return notes
