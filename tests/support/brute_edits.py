"""Five architectures with edits, written out by hand from their published router formulas.

For each of OLMoE, Mixtral, Qwen2-MoE, DeepSeek-V3 and gpt-oss the MoE block is written again, one
token at a time, in plain numbers: logits, choice, weights, experts, shared experts. The edits are
part of that text: a masked expert is not a candidate, a forced one is put on the list, and so on.
`rewrite` puts these blocks into a deep copy of a model whose other parts stay stock, so that whole
logits can be compared. Nothing of moescope is used but the dataclass that names an edit.
"""

import copy
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from tests.support.replay import replay
from torch import nn

from moescope.models.edits import Edit

FAMILIES = ("olmoe", "mixtral", "qwen2_moe", "deepseek_v3", "gpt_oss")


@dataclass(frozen=True)
class Rule:
    """How one router decides.

    ``formula``: *shares* (softmax over all experts, top k, perhaps divided by their sum), *sigmoid*
    (sigmoid of each logit; chosen by score + bias inside the best groups) or *chosen* (top k of
    the logits, then a softmax over those).
    """

    formula: str
    top_k: int
    normalize: bool = False
    selection_bias: tuple[float, ...] = ()
    groups: int = 1
    picked_groups: int = 1
    factor: float = 1.0


def rule_of(block: nn.Module) -> Rule:
    kind, router = type(block).__name__, getattr(block, "gate", None) or block.router
    if kind == "GptOssMLP":
        return Rule("chosen", router.top_k)
    if kind == "DeepseekV3MoE":
        assert router.norm_topk_prob
        return Rule(
            "sigmoid", router.top_k, True, tuple(router.e_score_correction_bias.tolist()),
            router.num_group, router.topk_group, float(router.routed_scaling_factor),
        )  # fmt: skip
    if kind == "MixtralSparseMoeBlock":
        return Rule("shares", router.top_k, True)
    assert kind in ("OlmoeSparseMoeBlock", "Qwen2MoeSparseMoeBlock"), kind
    return Rule("shares", router.top_k, bool(router.norm_topk_prob))


def decide(rule: Rule, logits: Sequence[float], edits: Sequence[Edit], layer: int) -> dict:
    """Expert → weight for one token; ``edits`` are those that hold at its position."""
    z = list(logits)
    for e, edit in _named(edits, layer, "bias"):
        z[e] += edit.value
    gone = {e for e, edit in _named(edits, layer, "mask") if edit.renormalize}
    beside = {e for e, edit in _named(edits, layer, "mask") if not edit.renormalize} - gone
    k = rule.top_k
    for edit in edits:
        if edit.kind == "top_k" and (edit.layers is None or layer in edit.layers):
            k = int(edit.value)
    there = [e for e in range(len(z)) if e not in gone]  # what the router's softmax knows of
    scores = _scores(rule, z, there)
    chosen = _choose(rule, z, scores, [e for e in there if e not in beside], k)
    weights = _weigh(rule, z, scores, chosen)
    forced = sorted({e for e, _ in _named(edits, layer, "force")})
    for e in forced:
        if e not in chosen:
            weights = _weigh(rule, z, scores, chosen)
            chosen.remove(min((c for c in chosen if c not in forced), key=weights.__getitem__))
            chosen.append(e)
    weights = _weigh(rule, z, scores, chosen)
    return _multiply(weights, edits, layer)


def _named(edits: Sequence[Edit], layer: int, kind: str) -> list[tuple[int, Edit]]:
    return [
        (ref.expert, edit)
        for edit in edits
        if edit.kind == kind
        for ref in edit.experts
        if ref.layer_idx == layer
    ]


def _scores(rule: Rule, z: list[float], there: list[int]) -> dict[int, float]:
    if rule.formula == "sigmoid":
        return {e: 1.0 / (1.0 + math.exp(-z[e])) for e in there}
    top = max(z[e] for e in there)
    total = sum(math.exp(z[e] - top) for e in there)
    return {e: math.exp(z[e] - top) / total for e in there}


def _choose(
    rule: Rule, z: list[float], scores: dict[int, float], candidates: list[int], k: int
) -> list[int]:
    if rule.formula != "sigmoid":
        return sorted(candidates, key=lambda e: -z[e])[:k]
    wish = {e: scores[e] + rule.selection_bias[e] for e in candidates}
    size = len(z) // rule.groups
    groups = []
    for g in range(rule.groups):
        members = sorted((e for e in candidates if e // size == g), key=lambda e: -wish[e])
        if len(members) >= 2:
            groups.append((wish[members[0]] + wish[members[1]], members))
    best = sorted(groups, key=lambda group: -group[0])[: rule.picked_groups]
    open_experts = [e for _, members in best for e in members]
    assert len(open_experts) >= k, "the router could not fill its choice"
    return sorted(open_experts, key=lambda e: -wish[e])[:k]


def _weigh(
    rule: Rule, z: list[float], scores: dict[int, float], chosen: list[int]
) -> dict[int, float]:
    if rule.formula == "chosen":
        top = max(z[e] for e in chosen)
        total = sum(math.exp(z[e] - top) for e in chosen)
        return {e: math.exp(z[e] - top) / total for e in chosen}
    total = sum(scores[e] for e in chosen) if rule.normalize else 1.0
    return {e: scores[e] / total * rule.factor for e in chosen}


def _multiply(weights: dict[int, float], edits: Sequence[Edit], layer: int) -> dict[int, float]:
    handed_on = {e for e, edit in _named(edits, layer, "zero") if edit.renormalize}
    if any(e in handed_on for e in weights):
        before = sum(weights.values())
        left = {e: 0.0 if e in handed_on else w for e, w in weights.items()}
        rest = sum(left.values())
        weights = {e: w * before / rest if rest else 0.0 for e, w in left.items()}
    for e, edit in _named(edits, layer, "zero"):
        if e in weights and not edit.renormalize:
            weights[e] = 0.0
    for e, edit in _named(edits, layer, "scale"):
        if e in weights:
            weights[e] *= edit.value
    return weights


class Rewritten:
    """A deep copy of a model with hand-written MoE blocks; ``edits`` may be exchanged.

    ``seen``: by layer, expert → weight of every row of the last pass.
    """

    def __init__(self, model: nn.Module) -> None:
        self.model: Any = copy.deepcopy(model)
        self.edits: list[Edit] = []
        self.seen: dict[int, list[dict[int, float]]] = {}
        self._columns: dict[int, int] = {}
        for number, layer in enumerate(self.model.model.layers):
            if hasattr(layer.mlp, "experts"):
                layer.mlp.forward = self._block(number, layer.mlp)

    def start(self, edits: Sequence[Edit]) -> Any:
        """The model at column 0 under these edits."""
        self.edits, self._columns = list(edits), {}
        return self.model

    def _block(self, number: int, block: Any) -> Any:
        rule = rule_of(block)
        router = getattr(block, "gate", None) or block.router

        def forward(hidden_BSD: torch.Tensor) -> Any:
            batch, length, _ = hidden_BSD.shape
            first = self._columns.get(number, 0)
            self._columns[number] = first + length
            rows = hidden_BSD.reshape(batch * length, -1)
            logits = rows @ router.weight.T + (router.bias if rule.formula == "chosen" else 0.0)
            decided = [
                decide(rule, logits[i].tolist(), self._at(first + i % length), number)
                for i in range(batch * length)
            ]
            self.seen[number] = decided
            ids = torch.tensor([list(d) for d in decided])
            weights = torch.tensor([list(d.values()) for d in decided])
            made = replay(block.experts, rows, ids, weights) + _shared(block, rows)
            made = made.reshape(hidden_BSD.shape)
            return (made, weights) if type(block).__name__ == "GptOssMLP" else made

        return forward

    def _at(self, column: int) -> list[Edit]:
        return [e for e in self.edits if e.positions is None or column in e.positions]


def _shared(block: Any, rows: torch.Tensor) -> torch.Tensor | float:
    if hasattr(block, "shared_expert"):  # Qwen2-MoE: with a gate of its own
        share = torch.sigmoid(rows @ block.shared_expert_gate.weight.T)
        return share * _mlp(block.shared_expert, rows)
    return _mlp(block.shared_experts, rows) if hasattr(block, "shared_experts") else 0.0


def _mlp(mlp: Any, rows: torch.Tensor) -> torch.Tensor:
    gate, up = rows @ mlp.gate_proj.weight.T, rows @ mlp.up_proj.weight.T
    return (gate * torch.sigmoid(gate) * up) @ mlp.down_proj.weight.T
