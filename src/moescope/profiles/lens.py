"""The logit lens of what an expert adds: which tokens it pushes towards, which away from.

A vector v that enters the residual stream reaches the logits along the stream itself as

    Δlogit = W_U · (γ ⊙ v) · r_t,      r_t = 1 / sqrt(mean(h_t²) + ε)

where h_t is the token's final residual: the variance of the final norm is *frozen* at the value
that it has, so the map is linear and the parts of the stream add up to the logits. A LayerNorm
takes the mean of v out first. What v changes in later layers is not in it.

The final norm and the head are found by running the model, not by name, and their behaviour is
observed; so is the way from the experts to the stream, which is refused where it is not a plain sum
(norms after the experts, several streams). It knows nothing of runs.

Reference:
    Yu and Ananiadou 2024, Neuron-Level Knowledge Attribution in Large Language Models.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import nn

from moescope.errors import CoverageError, ModelError
from moescope.models.anatomy import MoELayer
from moescope.models.loading import LoadedModel
from moescope.profiles.residual import layer_paths

_PROBE_TOKENS = 16
_CHUNK = 8192
_EXACT = 2e-2
"""Relative error up to which an observed behaviour counts as the one assumed, in any precision."""


@dataclass(frozen=True)
class Lens:
    """The end of a model as a linear map, and the way of each layer's experts to it.

    Attributes:
        norm: dotted path of the final norm.
        centred: it takes the mean out first (LayerNorm).
        gain: γ, (D,), float32.
        shift: what it adds afterwards, (D,); only needed to read r_t off.
        head: W_U, (V, D), the model's own tensor.
        vocabulary: rows of W_U that stand for a token of the tokenizer; the first this many.
        scale: factor between the head's output and the logits.
        note: what happens after the head that the lens leaves out, or empty.
        paths: by layer number the factor between the experts' output and the residual stream, or
            the reason why there is none.
    """

    norm: str
    centred: bool
    gain: torch.Tensor
    shift: torch.Tensor
    head: torch.Tensor
    vocabulary: int
    scale: float
    note: str
    paths: dict[int, float | str]

    def chunks(self, vectors_MD: torch.Tensor) -> Iterator[tuple[int, torch.Tensor]]:
        """Δlogits of M vectors whose frozen scale is already in them, some tokens at a time.

        Yields:
            (first token id, (M, up to 8192) float32), over the vocabulary; not centred.
        """
        vectors = self._through_norm(vectors_MD)
        for start in range(0, self.vocabulary, _CHUNK):
            rows = self.head[start : min(start + _CHUNK, self.vocabulary)]
            yield start, (vectors @ rows.float().T) * self.scale

    def at(self, vectors_MD: torch.Tensor, ids_R: torch.Tensor) -> torch.Tensor:
        """Δlogits of M vectors for a few tokens, (M, R); not centred."""
        return (self._through_norm(vectors_MD) @ self.head[ids_R].float().T) * self.scale

    def _through_norm(self, vectors_MD: torch.Tensor) -> torch.Tensor:
        vectors = vectors_MD.to(self.gain.device, torch.float32)
        return _centred(vectors, self.centred) * self.gain

    def logits(self, vectors_MD: torch.Tensor) -> torch.Tensor:
        """Δlogits of M vectors whose frozen scale is already in them, (M, V); not centred."""
        return torch.cat([part for _, part in self.chunks(vectors_MD)], dim=-1)


def _centred(vectors: torch.Tensor, wanted: bool) -> torch.Tensor:
    """What a LayerNorm leaves of vectors before it scales them; an RMSNorm leaves everything."""
    return vectors - vectors.mean(-1, keepdim=True) if wanted else vectors


def frozen_scale(
    before: torch.Tensor,
    after: torch.Tensor,
    gain: torch.Tensor,
    shift: torch.Tensor,
    centred: bool,
) -> torch.Tensor:
    """r_t of each row, read off what the norm really did: after = γ ⊙ before · r_t + shift.

    By least squares over D, so it needs no ε and no name, and half precision averages out.

    Args:
        before: final residuals, (T, D).
        after: the norm's output, (T, D).
        gain: γ, (D,).
        shift: (D,).
        centred: the norm takes the mean out first.

    Returns:
        (T,) float32.
    """
    given = _centred(before.float(), centred) * gain
    return ((after.float() - shift) * given).sum(-1) / (given * given).sum(-1).clamp_min(1e-30)


class FinalScales:
    """Context manager that reads r_t of every token of each forward pass.

    Example::

        with FinalScales(model, lens) as scales:
            model.base_model(input_ids=ids)
            scale_T = scales.take()
    """

    def __init__(self, model: nn.Module, lens: Lens) -> None:
        self._module, self._lens = model.get_submodule(lens.norm), lens
        self._seen: list[torch.Tensor] = []
        self._handle: Any = None

    def __enter__(self) -> Self:
        def hook(_module: nn.Module, args: tuple[Any, ...], output: torch.Tensor) -> None:
            lens, size = self._lens, output.shape[-1]
            before, after = args[0].reshape(-1, size), output.reshape(-1, size)
            self._seen.append(frozen_scale(before, after, lens.gain, lens.shift, lens.centred))

        self._handle = self._module.register_forward_hook(hook)
        return self

    def __exit__(self, *_: object) -> None:
        self._handle.remove()

    def take(self) -> torch.Tensor:
        """r_t of the rows of the one pass since the last take, (T,).

        Raises:
            CoverageError: the final norm was not called exactly once.
        """
        seen, self._seen = self._seen, []
        if len(seen) != 1:
            raise CoverageError(
                f"the final norm {self._lens.norm} ran {len(seen)} times in one pass, expected once"
            )
        return seen[0]


@torch.no_grad()
def find_lens(loaded: LoadedModel, layers: Sequence[MoELayer]) -> Lens:
    """Find the final norm and the head, check that they are what the lens assumes, and the paths.

    Args:
        loaded: a model.
        layers: the MoE layers whose experts will be looked at.

    Raises:
        ModelError: there is no linear head, no norm right before it, the norm is neither RMSNorm
            nor LayerNorm, or something between the last layer and the norm changes the residual.
    """
    model: Any = loaded.model
    head = model.get_output_embeddings()
    weight = getattr(head, "weight", None)
    if weight is None or weight.dim() != 2:
        raise ModelError("this model has no output embedding, so there is nothing to look through")
    device, rows = weight.device, int(weight.shape[0])
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(min(rows, 1 << 15), (1, _PROBE_TOKENS), generator=generator).to(device)
    seen = _Ends(model, head, ids)
    path, module = seen.norm()
    gain, shift, centred = _behaviour(path, module, seen.last_before, generator)
    scale, note = seen.after_head()
    return Lens(
        norm=path,
        centred=centred,
        gain=gain,
        shift=shift,
        head=weight.detach(),
        vocabulary=min(rows, len(loaded.tokenizer)),
        scale=scale,
        note=note,
        paths=layer_paths(model, layers, ids, seen.last_before),
    )


class _Ends:
    """One short pass that keeps what went into the head, what came out, and who made it."""

    def __init__(self, model: Any, head: nn.Module, ids: torch.Tensor) -> None:
        self._head = head
        self._given: list[torch.Tensor] = []
        self._made: list[torch.Tensor] = []
        self._leaves: list[tuple[str, nn.Module, torch.Tensor, torch.Tensor]] = []
        self.last_before = torch.empty(0)
        with contextlib.ExitStack() as hooks:
            hooks.enter_context(head.register_forward_hook(self._keep_head))
            for name, module in model.named_modules():
                if module is not head and not any(True for _ in module.children()):
                    hooks.enter_context(module.register_forward_hook(self._keep_leaf(name)))
            output = model(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False)
        if len(self._given) != 1:
            raise ModelError(
                f"the head ran {len(self._given)} times in one pass, expected once; the logit lens "
                "needs a plain head"
            )
        self._logits = output.logits.float()

    def _keep_head(self, _module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        self._given.append(args[0])
        self._made.append(output)

    def _keep_leaf(self, name: str) -> Any:
        def hook(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
            given = args[0] if args else None
            if not isinstance(given, torch.Tensor) or not isinstance(output, torch.Tensor):
                return
            if given.shape == output.shape:
                self._leaves.append((name, module, given, output))

        return hook

    def norm(self) -> tuple[str, nn.Module]:
        """The last module whose output is what the head was given."""
        given = self._given[0]
        for name, module, before, after in reversed(self._leaves):
            if after.numel() == given.numel() and torch.equal(after.reshape(given.shape), given):
                self.last_before = before
                return name, module
        raise ModelError(
            "no norm stands right before this model's head, so there is no variance to freeze"
        )

    def after_head(self) -> tuple[float, str]:
        """Factor from the head's output to the logits; a bend is left out and noted."""
        given, made = self._given[0], self._made[0].float()
        weight: Any = self._head.weight
        bias = getattr(self._head, "bias", None)
        plain = nn.functional.linear(given, weight, bias).float()
        if (plain - made).norm() > _EXACT * made.norm():
            raise ModelError("this model's head is not linear; a logit lens would say nothing")
        if self._logits.shape != made.shape:
            made = made.reshape(self._logits.shape)
        factor = float((self._logits * made).sum() / (made * made).sum())
        if (self._logits - factor * made).norm() <= 1e-3 * self._logits.norm():
            return factor, "" if abs(factor - 1) < 1e-3 else f"logits are {factor:g} × the head"
        return 1.0, "the model bends its logits after the head (a soft cap); figures are before it"


def _behaviour(
    path: str, norm: nn.Module, residual: torch.Tensor, generator: torch.Generator
) -> tuple[torch.Tensor, torch.Tensor, bool]:
    """γ, shift and centring of a norm, from what it does to ±c and to shifted noise.

    A vector of as many +c as −c has mean 0 and root mean square c, so RMSNorm and LayerNorm alike
    give ±γ + shift.
    """
    size = int(residual.shape[-1])
    signs = torch.ones(size)
    signs[torch.randperm(size, generator=generator)[: size // 2]] = -1
    probe = torch.stack([64 * signs, -64 * signs])[None].to(residual)
    up, down = norm(probe)[0].float()
    gain, shift = (up - down) / 2 * signs.to(up), (up + down) / 2
    noise = (3 * torch.randn(1, 8, size, generator=generator) + 2).to(residual)
    got = norm(noise)[0].float()
    for centred in (False, True):
        given = _centred(noise[0].float(), centred)
        expected = gain * given / given.pow(2).mean(-1, keepdim=True).sqrt() + shift
        if (expected - got).norm() <= _EXACT * got.norm():
            return gain, shift, centred
    raise ModelError(
        f"{path} ({type(norm).__name__}) stands before the head but is neither an RMSNorm nor a "
        "LayerNorm; its variance cannot be frozen"
    )
