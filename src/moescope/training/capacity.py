"""What becomes of a choice when its expert is full: the place of each token in each queue.

Axes: T tokens, K experts per token, E experts, G groups of S consecutive tokens. Decisions are
made strictly in token order, so the fate of a token never depends on the tokens after it and
training sees what decoding will do. GShard's order (everybody's first choice before anybody's
second) and Switch's rounds of "no token left behind" do not have that property: a later token's
first choice can push out an earlier token's second. It knows nothing of routers or weights.
"""

# ruff: noqa: N815  (axis suffixes on the fields of NamedTuples)

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Literal, NamedTuple, get_args

import numpy as np
import torch
from jaxtyping import Bool, Float, Float64, Int64
from torch import Tensor

from moescope.errors import BadInputError
from moescope.words import counted

Overflow = Literal["drop", "reroute"]
"""What happens to a choice whose expert is full."""


class Assignment(NamedTuple):
    """Where T tokens with K choices each ended up.

    ``topk_ids_TK``: int64, the expert that computes, num_experts where there is none.
    ``dropped_TK``: the choice was dropped; an empty slot was not. ``rerouted_TK``: the expert is
    another than the chosen one. ``positions_TK``: int64, place in the expert's queue, 0 …
    capacity − 1; −1 when dropped or empty.
    """

    topk_ids_TK: Tensor
    dropped_TK: Tensor
    rerouted_TK: Tensor
    positions_TK: Tensor


@dataclass(frozen=True)
class Choice:
    """What one token wanted and what it got, for reading."""

    token: int
    """Index of the token."""
    text: str
    wanted: tuple[int, ...]
    """Its experts by rank; empty slots are left out."""
    got: tuple[int | None, ...]
    """The expert in place of each wanted one; None where dropped."""
    note: str
    """What overflowed and where it went; empty when everything went as wanted."""


def expert_capacity(
    num_tokens: int, num_experts: int, top_k: int, factor: float, minimum: int = 4
) -> int:
    """How many assignments an expert may take from a group.

    max(min(T, ⌊T·factor·K/E⌋), minimum). A factor of 1 leaves room for even routing exactly; 1.25
    in training and 2.0 in evaluation are usual. The factor is taken as the decimal that it is
    written as, so that 100·1.15 has room for 115 and not, by rounding, for 114.

    Degenerate: in a group of fewer tokens than ``minimum`` the capacity is above T and never
    reached.

    Args:
        num_tokens: T, tokens of the group.
        num_experts: E.
        top_k: K, 1 … E.
        factor: the capacity factor, above 0.
        minimum: the least capacity, whatever the factor.

    Returns:
        Assignments, at least 1.

    Raises:
        BadInputError: a count that is impossible, a factor that is not above 0, or a result
            below 1 (few tokens with ``minimum`` 0).

    Example:
        >>> expert_capacity(64, 8, 2, 1.25)  # 64·1.25·2/8
        20

    Reference:
        Fedus, Zoph and Shazeer 2021, Switch Transformers, Eq. 3.
    """
    if num_tokens < 0:
        raise BadInputError(f"num_tokens: got {num_tokens}, expected 0 or more")
    if not 1 <= top_k <= num_experts:
        raise BadInputError(f"top_k: got {top_k}, expected 1 to {num_experts}, the experts")
    if not (math.isfinite(factor) and factor > 0):
        raise BadInputError(f"capacity factor: got {factor}, expected a number above 0")
    even = math.floor(num_tokens * Fraction(str(float(factor))) * top_k / num_experts)
    capacity = max(min(num_tokens, even), minimum)
    _check_capacity(capacity)
    return capacity


def assign(
    topk_ids_TK: Int64[Tensor, "T K"],
    selection_scores_TE: Float[Tensor, "T E"],
    capacity: int,
    *,
    num_experts: int,
    overflow: Overflow = "drop",
    groups: int = 1,
) -> Assignment:
    """Seat every choice in its expert's queue until the expert is full.

    The T tokens are ``groups`` equal runs of consecutive tokens (sequences, say), each with a
    capacity of its own. Choices are taken in token order: the K choices of a token by rank, then
    the next token. A choice whose expert is full is dropped, or with "reroute" goes to the expert
    of the highest selection score that has room and that the token has not chosen or been sent
    to already; without any such expert it is dropped too. A token without an expert passes on
    through the residual alone.

    Causal: what the first n tokens of a group get does not depend on the tokens after them, nor
    on other groups.

    Degenerate: slots that hold num_experts stay empty and are not dropped. Ties between selection
    scores go to the lower expert.

    Args:
        topk_ids_TK: (T, K), the choices by rank, 0 … num_experts.
        selection_scores_TE: (T, E), larger is better; used by "reroute" only.
        capacity: assignments of an expert in each group, at least 1.
        num_experts: E.
        overflow: "drop" or "reroute".
        groups: G, divides T.

    Returns:
        See `Assignment`. The weight of a rerouted choice is the caller's to take, at the new
        expert.

    Raises:
        BadInputError: a capacity below 1, an unknown overflow, groups that do not divide T, ids
            outside 0 … num_experts, or scores of another shape.

    Example:
        >>> ids, scores = torch.tensor([[0], [0], [0]]), torch.tensor([[3.0, 1.0, 2.0]] * 3)
        >>> assign(ids, scores, 1, num_experts=3).topk_ids_TK.flatten()
        tensor([0, 3, 3])
        >>> assign(ids, scores, 1, num_experts=3, overflow="reroute").topk_ids_TK.flatten()
        tensor([0, 2, 1])
    """
    _check_assign(topk_ids_TK, selection_scores_TE, capacity, num_experts, overflow, groups)
    queue_TK = _queue_places(topk_ids_TK, num_experts, groups)
    full_TK = queue_TK >= capacity
    if overflow == "drop" or not full_TK.any():
        return Assignment(
            topk_ids_TK.masked_fill(full_TK, num_experts),
            full_TK,
            torch.zeros_like(full_TK),
            queue_TK.masked_fill(full_TK, -1),
        )
    final_TK, place_TK = _reroute(
        topk_ids_TK, selection_scores_TE, queue_TK, capacity, num_experts, groups
    )
    moved_TK, gone_TK = final_TK != topk_ids_TK, final_TK == num_experts
    return Assignment(final_TK, moved_TK & gone_TK, moved_TK & ~gone_TK, place_TK)


def _queue_places(ids_TK: Tensor, num_experts: int, groups: int) -> Tensor:
    """How many earlier choices of the group want the same expert; −1 for an empty slot."""
    tokens = len(ids_TK)
    if not ids_TK.numel():
        return torch.full_like(ids_TK, -1)
    group_T = torch.arange(tokens, device=ids_TK.device) // (tokens // groups)
    wanted = (ids_TK + group_T[:, None] * (num_experts + 1)).reshape(-1)
    in_order, order = wanted.sort(stable=True)
    first = torch.searchsorted(in_order, in_order)  # where each run of equal wishes begins
    places = torch.empty_like(order)
    places[order] = torch.arange(len(order), device=order.device) - first
    return places.view_as(ids_TK).masked_fill(ids_TK == num_experts, -1)


def _reroute(
    ids_TK: Tensor,
    scores_TE: Tensor,
    queue_TK: Tensor,
    capacity: int,
    num_experts: int,
    groups: int,
) -> tuple[Tensor, Tensor]:
    """Final experts and places; until a group's first overflow they are those of the queue."""
    length = len(ids_TK) // groups
    final_TK, place_TK = ids_TK.cpu().numpy().copy(), queue_TK.cpu().numpy().copy()
    scores = scores_TE.detach().cpu().numpy()
    for start in range(0, len(ids_TK), length):
        group = slice(start, start + length)
        full_T = (place_TK[group] >= capacity).any(axis=1)
        if not full_T.any():
            continue
        before = start + int(full_T.argmax())
        used = np.bincount(final_TK[start:before].ravel(), minlength=num_experts + 1).tolist()
        rest = slice(before, start + length)
        by_score = np.argsort(-scores[rest], axis=1, kind="stable").ravel().tolist()
        final, places = _in_token_order(final_TK[rest].ravel().tolist(), by_score, used, capacity)
        final_TK[rest] = np.reshape(final, final_TK[rest].shape)
        place_TK[rest] = np.reshape(places, final_TK[rest].shape)
    device = ids_TK.device
    return torch.from_numpy(final_TK).to(device), torch.from_numpy(place_TK).to(device)


def _in_token_order(
    wanted: list[int], by_score: list[int], used: list[int], capacity: int
) -> tuple[list[int], list[int]]:
    """The rule itself, one choice after the other; ``used`` is filled up on the way.

    The lists are flat: a list for each token would keep the garbage collector busy.
    """
    nowhere = len(used) - 1
    num_tokens = len(by_score) // nowhere
    top_k = len(wanted) // num_tokens
    final, places = [], []
    for token in range(num_tokens):
        own = wanted[token * top_k : (token + 1) * top_k]
        # One walk down the scores serves all choices of a token: an expert that was passed over
        # stays full, was chosen by the token itself, or was just given to it.
        candidates = iter(by_score[token * nowhere : (token + 1) * nowhere])
        for choice in own:
            given = choice
            if choice != nowhere and used[choice] >= capacity:
                given = nowhere
                for expert in candidates:
                    if used[expert] < capacity and expert not in own:
                        given = expert
                        break
            final.append(given)
            places.append(used[given] if given != nowhere else -1)
            used[given] += 1
    return final, places


def dropped_share_by_position(
    dropped_TK: Bool[Tensor, "T K"], sequence_length: int, bins: int
) -> Float64[np.ndarray, " bins"]:
    """Where in the sequence choices are dropped: with a queue in token order, towards the end.

    Position s of 0 … S − 1 falls into bin ⌊s·bins/S⌋; the share of a bin is its dropped slots
    over its slots, in [0, 1]. Empty slots count as slots that were not dropped.

    Degenerate: NaN in every bin without tokens.

    Args:
        dropped_TK: (T, K), whole sequences one after the other.
        sequence_length: S, divides T.
        bins: 1 … S.

    Returns:
        (bins,), by position.

    Raises:
        BadInputError: a length that does not divide T, or bins outside 1 … S.

    Example:
        >>> dropped = torch.tensor([[False], [False], [False], [True]])
        >>> dropped_share_by_position(dropped, 4, 2)
        array([0. , 0.5])
    """
    tokens = len(dropped_TK)
    if sequence_length < 1 or tokens % sequence_length:
        raise BadInputError(
            f"sequence_length: got {sequence_length}, expected a divisor of {tokens}, the tokens"
        )
    if not 1 <= bins <= sequence_length:
        raise BadInputError(f"bins: got {bins}, expected 1 to {sequence_length}, the positions")
    if not dropped_TK.numel():
        return np.full(bins, np.nan)
    by_token = dropped_TK.cpu().numpy().mean(axis=1)
    bin_T = np.arange(tokens) % sequence_length * bins // sequence_length
    hits = np.bincount(bin_T, weights=by_token, minlength=bins)
    shares: Float64[np.ndarray, " bins"] = hits / np.bincount(bin_T, minlength=bins)
    return shares


def explain(
    topk_ids_TK: Int64[Tensor, "T K"],
    selection_scores_TE: Float[Tensor, "T E"],
    capacity: int,
    tokens: Sequence[str],
    num_experts: int,
    overflow: Overflow = "drop",
) -> list[Choice]:
    """`assign` on one short text, told token by token.

    Args:
        topk_ids_TK: (T, K), the choices by rank, 0 … num_experts.
        selection_scores_TE: (T, E).
        capacity: assignments of each expert.
        tokens: T texts.
        num_experts: E.
        overflow: "drop" or "reroute".

    Returns:
        One `Choice` for each token.

    Raises:
        BadInputError: as `assign`, or when the number of texts is not T.

    Example:
        >>> ids, scores = torch.tensor([[0], [0]]), torch.tensor([[2.0, 1.0]] * 2)
        >>> explain(ids, scores, 1, ["the", "cat"], 2, "reroute")[1]
        Choice(token=1, text='cat', wanted=(0,), got=(1,), note='E0 full (1 of 1) → E1')
    """
    if len(tokens) != len(topk_ids_TK):
        raise BadInputError(
            f"tokens: got {counted(len(tokens), 'text')}, expected {len(topk_ids_TK)}, one for "
            "each token"
        )
    made = assign(
        topk_ids_TK, selection_scores_TE, capacity, num_experts=num_experts, overflow=overflow
    )
    rows = []
    pairs = zip(topk_ids_TK.tolist(), made.topk_ids_TK.tolist(), strict=True)
    for index, (before, after) in enumerate(pairs):
        kept = [(w, g) for w, g in zip(before, after, strict=True) if w != num_experts]
        wanted = tuple(w for w, _ in kept)
        got = tuple(None if g == num_experts else g for _, g in kept)
        note = _note(wanted, got, capacity, overflow)
        rows.append(Choice(index, tokens[index], wanted, got, note))
    return rows


def _note(
    wanted: tuple[int, ...], got: tuple[int | None, ...], capacity: int, overflow: Overflow
) -> str:
    notes = []
    for choice, expert in zip(wanted, got, strict=True):
        if choice == expert:
            continue
        note = f"E{choice} full ({capacity} of {capacity})"
        if expert is not None:
            note += f" → E{expert}"
        else:
            note += ", no other has room for it, dropped" if overflow == "reroute" else ", dropped"
        notes.append(note)
    alone = bool(got) and all(expert is None for expert in got)
    return "; ".join(notes) + (": passes on through the residual" if alone else "")


def _check_capacity(capacity: int) -> None:
    if capacity < 1:
        raise BadInputError(f"capacity: got {capacity}, expected at least 1 token for each expert")


def _check_assign(
    ids: Tensor, scores: Tensor, capacity: int, num_experts: int, overflow: str, groups: int
) -> None:
    _check_capacity(capacity)
    if overflow not in get_args(Overflow):
        raise BadInputError(
            f"overflow: got {overflow!r}, expected one of {', '.join(get_args(Overflow))}"
        )
    if groups < 1 or len(ids) % groups:
        raise BadInputError(f"groups: got {groups}, expected a divisor of {len(ids)}, the tokens")
    if scores.shape != (len(ids), num_experts):
        raise BadInputError(
            f"selection_scores: got shape {tuple(scores.shape)}, expected "
            f"({len(ids)}, {num_experts})"
        )
    if ids.numel() and (int(ids.min()) < 0 or int(ids.max()) > num_experts):
        raise BadInputError(
            f"topk_ids: got ids {int(ids.min())} to {int(ids.max())}, expected 0 to "
            f"{num_experts - 1}, or {num_experts} for an empty slot"
        )
