"""Cosine and linear CKA between many large outputs on the same tokens, exact and in bounded memory.

One function after the other hands in its whole output; what stays is written to a file without a
name, or kept where it fits. Cosines are then summed over blocks of tokens, and the products of
centred token Gram matrices over pairs of blocks: <K_i, K_j> = Σ_ab K_i[a,b]·K_j[a,b] with
K_i[a,b] = y_i[a]·y_i[b], which equals ||Y_jᵀY_i||²_F. Every sum is in float64 and kept by group of
tokens, so that what a part of the text gives follows without another pass.

It knows arrays only: functions, tokens and groups of tokens, no model and no text.
"""

from __future__ import annotations

import itertools
import math
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from moescope.similarity.row_store import RowStore

Step = Callable[[float], None]
"""Called with the number of floating-point operations that were just done."""

Floats = NDArray[np.float64]

_CHUNK = 1024
_MOST_ROWS = 2048
_CELLS = 4_000_000
_ROUNDING = 1e-6


class TokenGroups:
    """Consecutive tokens in groups, and the parts of the text that sums are wanted for.

    Args:
        sizes: tokens of each group, in the order of the tokens; none is 0.

    Attributes:
        bounds: where each group begins, and the end: G + 1 numbers.
        parts: (P, G) bool. First the whole; then, with 2 groups or more, the whole without each
            group; then the groups of even and of odd number.
    """

    def __init__(self, sizes: list[int]) -> None:
        if not sizes or min(sizes) < 1:
            raise ValueError(f"every group needs a token, got sizes {sizes}")
        self.sizes = np.asarray(sizes, np.int64)
        self.bounds: list[int] = [0, *np.cumsum(self.sizes).tolist()]
        self.num_tokens = self.bounds[-1]
        count = len(sizes)
        rows = [np.ones(count, np.bool_)]
        if count > 1:
            even = np.arange(count) % 2 == 0
            rows += [np.arange(count) != g for g in range(count)] + [even, ~even]
        self.parts: NDArray[np.bool_] = np.stack(rows)

    def __len__(self) -> int:
        return len(self.sizes)

    def pieces(self, start: int, stop: int) -> Iterator[tuple[int, slice]]:
        """The groups that meet tokens start … stop − 1, with their place counted from start."""
        for group, (low, high) in enumerate(itertools.pairwise(self.bounds)):
            if low < stop and high > start:
                yield group, slice(max(low, start) - start, min(high, stop) - start)


class FunctionOutputs:
    """The centred outputs of F functions on the same N tokens, and what each gives by itself.

    Args:
        functions: F.
        groups: the N tokens in groups.
        width: D, of the outputs.
        budget: bytes for what is kept and worked on; the output of one function comes on top.
        folder: where the outputs are written if they do not fit in half of the budget.
        device: where products are computed.
        dtype: in which outputs are kept and multiplied; sums are float64 in any case.

    Attributes:
        norms_FN: length of each output. squares_FN: squared length of each centred output.
        unit_means_FD: mean direction over the tokens whose output is not zero.
        nonfinite_F: tokens with an output that is not finite; such a function counts as zero.
    """

    def __init__(
        self, functions: int, groups: TokenGroups, width: int, *, budget: float = 1e9,
        folder: Path | None = None, device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> None:  # fmt: skip
        self.groups, self.budget, self.device = groups, budget, torch.device(device)
        self.shape = (functions, groups.num_tokens, width)
        fits = math.prod(self.shape) * dtype.itemsize <= budget / 2
        self.store = RowStore(
            self.shape, dtype, None if fits else folder or Path(tempfile.gettempdir())
        )
        count = groups.parts.shape[0]
        self.norms_FN = torch.zeros(self.shape[:2], dtype=torch.float64)
        self.squares_FN = torch.zeros(self.shape[:2], dtype=torch.float64)
        self.means_FD = torch.zeros((functions, width), dtype=torch.float64)
        self.unit_means_FD = torch.zeros((functions, width), dtype=torch.float64)
        self.part_means_FP = torch.zeros((functions, count), dtype=torch.float64)
        self.on_means_FNP = torch.zeros((*self.shape[:2], count), dtype=dtype)
        self.nonfinite_F = [0] * functions

    def add(self, function: int, rows_ND: torch.Tensor) -> None:
        """Take the whole output of one function, (N, D); the tensor is overwritten."""
        rows = rows_ND.to("cpu", self.store.dtype)
        finite = torch.isfinite(rows).all(1)
        if not bool(finite.all()):
            self.nonfinite_F[function] = int((~finite).sum())
            rows = torch.zeros_like(rows)
        self._means(function, rows)
        sums = torch.zeros((len(self.groups), self.shape[2]), dtype=torch.float64)
        for start, stop in _spans(self.shape[1], _CHUNK):
            rows[start:stop] = (rows[start:stop].double() - self.means_FD[function]).to(rows.dtype)
            centred = rows[start:stop].double()
            self.squares_FN[function, start:stop] = centred.square().sum(1)
            for group, place in self.groups.pieces(start, stop):
                sums[group] += centred[place].sum(0)
        members = torch.as_tensor(self.groups.parts, dtype=torch.float64)
        tokens = torch.as_tensor(self.groups.parts @ self.groups.sizes, dtype=torch.float64)
        means_PD = (members @ sums) / tokens[:, None]
        self.part_means_FP[function] = means_PD.square().sum(1)
        for start, stop in _spans(self.shape[1], _CHUNK):
            on_means = rows[start:stop].double() @ means_PD.T
            self.on_means_FNP[function, start:stop] = on_means.to(rows.dtype)
        self.store.write(function, 0, rows)

    def _means(self, function: int, rows_ND: torch.Tensor) -> None:
        total = torch.zeros(self.shape[2], dtype=torch.float64)
        directions = torch.zeros_like(total)
        for start, stop in _spans(self.shape[1], _CHUNK):
            part = rows_ND[start:stop].double()
            norms = part.square().sum(1).sqrt()
            self.norms_FN[function, start:stop] = norms
            total += part.sum(0)
            directions += _inverse(norms) @ part
        known = max(1, int((self.norms_FN[function] > 0).sum()))
        self.means_FD[function] = total / self.shape[1]
        self.unit_means_FD[function] = directions / known

    def undefined(self, *, centred: bool) -> dict[int, str]:
        """Functions that nothing can be compared with, and why.

        Args:
            centred: outputs are centred before they are compared, so one that never varies is lost.
        """
        found = {}
        for function, bad in enumerate(self.nonfinite_F):
            length = float(self.norms_FN[function].square().sum())
            if bad:
                found[function] = f"its output is not finite on {bad:,} tokens"
            elif length == 0.0:
                found[function] = "its output is zero on every token"
            elif centred and float(self.squares_FN[function].sum()) <= _ROUNDING**2 * length:
                found[function] = "its output is the same on every token"
        return found

    def close(self) -> None:
        """Give the memory or the disk space of the outputs back."""
        self.store.close()


class CosineSums(NamedTuple):
    """Sums of cosines over tokens.

    ``sums`` and ``tokens`` (G, F, F): by group, over the tokens where neither output is zero.
    ``routed_sums`` and ``routed_tokens`` (E, E): over the tokens given to one of the two, for the
    first E functions. ``directions`` (F, F): products of the mean directions.
    """

    sums: Floats
    tokens: Floats
    routed_sums: Floats
    routed_tokens: Floats
    directions: Floats


def cosine_sums(
    outputs: FunctionOutputs,
    routed_NE: torch.Tensor | None = None,
    on_step: Step = lambda _: None,
) -> CosineSums:
    """Cosine of every pair of functions on every token, summed.

    ``routed_NE``: which tokens were really given to which of the first E functions.
    """
    count, _, width = outputs.shape
    experts = 0 if routed_NE is None else routed_NE.shape[1]
    sums = np.zeros((len(outputs.groups), count, count))
    tokens = np.zeros_like(sums)
    routed_sums, routed_tokens = np.zeros((2, experts, experts))
    room = outputs.budget / 4 / (outputs.store.dtype.itemsize * count * (width + 4 * count))
    rows = int(min(max(1, room), _CHUNK))
    for group, (low, high) in enumerate(itertools.pairwise(outputs.groups.bounds)):
        for start, stop in _spans(high - low, rows, low):
            cosines = _cosines(outputs, start, stop)
            sums[group] += cosines.sum(0, dtype=_sum_type(outputs.device)).double().cpu().numpy()
            known = outputs.norms_FN[:, start:stop] > 0
            tokens[group] += (known.double() @ known.double().T).numpy()
            if routed_NE is not None:
                given = routed_NE[start:stop]
                either = given[:, :, None] | given[:, None, :]
                both = known[:experts].T
                either &= both[:, :, None] & both[:, None, :]
                chosen = torch.where(either, cosines[:, :experts, :experts].cpu(), 0.0)
                routed_sums += chosen.sum(0, dtype=torch.float64).numpy()
                routed_tokens += either.sum(0).numpy()
            on_step(2.0 * (stop - start) * count * count * width)
    directions = (outputs.unit_means_FD @ outputs.unit_means_FD.T).numpy()
    return CosineSums(sums, tokens, routed_sums, routed_tokens, directions)


def _cosines(outputs: FunctionOutputs, start: int, stop: int) -> torch.Tensor:
    """(R, F, F) of tokens start … stop − 1; 0 where an output is zero."""
    count, _, width = outputs.shape
    units = torch.empty(
        (count, stop - start, width), dtype=outputs.store.dtype, device=outputs.device
    )
    scale = _inverse(outputs.norms_FN[:, start:stop])[:, :, None].to(units)
    means = outputs.means_FD.to(units.dtype)
    for function in range(count):
        units[function] = outputs.store.read(function, start, stop) + means[function]
    units *= scale
    return units.permute(1, 0, 2) @ units.permute(1, 2, 0)


class GramSums(NamedTuple):
    """What linear CKA needs.

    ``products`` (P, F, F): ||Y_jᵀY_i||²_F over the tokens of each part, centred within it.
    ``traces`` (F,): ||Y_i||²_F, centred. ``squares`` (F, F): Σ_t |y_i[t]|²·|y_j[t]|², centred;
    both of the whole.
    """

    products: Floats
    traces: Floats
    squares: Floats
    tokens: NDArray[np.int64]


def gram_sums(outputs: FunctionOutputs, on_step: Step = lambda _: None) -> GramSums:
    """Products of the token Gram matrices of every two functions, for every part of the text."""
    groups, count = outputs.groups, outputs.shape[0]
    by_group = _products_by_group(outputs, on_step)
    products = np.empty((groups.parts.shape[0], count, count))
    tokens = groups.parts @ groups.sizes
    for number, part in enumerate(groups.parts):
        # centring within the part: ||C − n·m_i·m_jᵀ||² with C = Y_iᵀY_j and the part's own means m
        inside = torch.as_tensor(np.repeat(part, groups.sizes))
        on_means = outputs.on_means_FNP[:, inside, number].double()
        lengths = outputs.part_means_FP[:, number].numpy()
        size = float(tokens[number])
        products[number] = by_group[np.ix_(part, part)].sum((0, 1))
        products[number] -= 2 * size * (on_means @ on_means.T).numpy()
        products[number] += size * size * lengths[:, None] * lengths[None, :]
    squares = outputs.squares_FN
    return GramSums(products, squares.sum(1).numpy(), (squares @ squares.T).numpy(), tokens)


def _products_by_group(outputs: FunctionOutputs, on_step: Step) -> Floats:
    """(G, G, F, F): <K_i, K_j> over the tokens of one group by those of another."""
    count, size, width = outputs.shape
    groups, dtype = outputs.groups, outputs.store.dtype
    total = np.zeros((len(groups), len(groups), count, count))
    side = block_side(size, count, outputs.budget, dtype)
    grams = torch.empty((count, side, side), dtype=dtype, device=outputs.device)
    spans = list(_spans(size, side))
    for number, (a, a_end) in enumerate(spans):
        for b, b_end in spans[number:]:
            for function in range(count):
                left = outputs.store.read(function, a, a_end).to(outputs.device)
                right = left
                if b != a:
                    right = outputs.store.read(function, b, b_end).to(outputs.device)
                grams[function, : a_end - a, : b_end - b] = left @ right.T
            for g, rows in groups.pieces(a, a_end):
                for h, columns in groups.pieces(b, b_end):
                    inner = _inner(grams[:, rows, columns])
                    total[g, h] += inner
                    if b != a:
                        total[h, g] += inner
            on_step(2.0 * (a_end - a) * (b_end - b) * count * (width + count))
    return total


def block_side(
    tokens: int, functions: int, budget: float, dtype: torch.dtype = torch.float32
) -> int:
    """Tokens on one side of a block, so that all Gram matrices of a block take half the budget."""
    room = math.isqrt(max(1, int(budget / 2 / (dtype.itemsize * functions))))
    return math.ceil(tokens / math.ceil(tokens / min(room, _MOST_ROWS)))


def gram_operations(tokens: int, functions: int, width: int, budget: float) -> float:
    """Floating-point operations of `gram_sums`: half of all pairs of tokens, by whole blocks."""
    side = block_side(tokens, functions, budget)
    return (tokens + side) * float(tokens) * functions * (width + functions)


def _inner(grams_FAB: torch.Tensor) -> Floats:
    """<K_i, K_j> over one piece, (F, F)."""
    count, rows, columns = grams_FAB.shape
    # Apple's GPUs have no float64
    place = torch.device("cpu") if grams_FAB.device.type == "mps" else grams_FAB.device
    total = torch.zeros((count, count), dtype=torch.float64, device=place)
    for start, stop in _spans(rows, max(1, _CELLS // (count * columns))):
        flat = grams_FAB[:, start:stop].to(place).double().reshape(count, -1)
        total += flat @ flat.T
    return np.asarray(total.cpu().numpy())


def _inverse(norms: torch.Tensor) -> torch.Tensor:
    """1/x, and 0 for 0."""
    return torch.where(norms > 0, 1.0 / torch.where(norms > 0, norms, 1.0), 0.0)


def _sum_type(device: torch.device) -> torch.dtype:
    return torch.float32 if device.type == "mps" else torch.float64


def _spans(size: int, step: int, first: int = 0) -> Iterator[tuple[int, int]]:
    for start in range(first, first + size, step):
        yield start, min(start + step, first + size)
