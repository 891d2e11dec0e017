"""AdamW with float32 masters, and the learning rate of a step."""

from __future__ import annotations

import math

import torch
from torch import nn

from moescope.training.recipe import TrainRecipe


def learning_rate(step: int, num_steps: int, train: TrainRecipe) -> float:
    """The rate of a step from 0: a linear rise, then half a cosine to the final rate.

    Example:
        >>> from moescope.training.recipe import TrainRecipe
        >>> plan = TrainRecipe(steps=100, warmup=0.1, learning_rate=1.0, final_learning_rate=0.0)
        >>> [round(learning_rate(s, 100, plan), 3) for s in (0, 9, 10, 55, 100)]
        [0.1, 1.0, 1.0, 0.5, 0.0]
    """
    rising = train.warmup * num_steps
    if step < rising:
        return train.learning_rate * min(1.0, (step + 1) / rising)
    progress = (step - rising) / max(1.0, num_steps - rising)
    half = 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))
    return train.final_learning_rate + (train.learning_rate - train.final_learning_rate) * half


class Optimizer:
    """AdamW over named parameters; weights in half precision get a float32 master each.

    Matrices decay, vectors (norms, biases) do not. Adding a small update to a bfloat16 weight
    mostly does nothing (8 bits of mantissa); the master remembers it.
    """

    def __init__(self, parameters: dict[str, nn.Parameter], train: TrainRecipe) -> None:
        self.parameters = parameters
        self.masters = {
            name: p if p.dtype in (torch.float32, torch.float64) else p.detach().float()
            for name, p in parameters.items()
        }
        matrices = [p for p in self.masters.values() if p.ndim >= 2]
        vectors = [p for p in self.masters.values() if p.ndim < 2]
        groups = [
            {"params": matrices, "weight_decay": train.weight_decay},
            {"params": vectors, "weight_decay": 0.0},
        ]
        groups = [group for group in groups if group["params"]]
        self._adam = torch.optim.AdamW(groups, lr=0.0, betas=train.betas, eps=1e-8, fused=True)
        self._names = [
            next(name for name, m in self.masters.items() if m is p) for p in matrices + vectors
        ]
        self._clip = train.gradient_clip

    def step(self, gradients: list[torch.Tensor | None], rate: float) -> float:
        """Apply one update; returns the norm of all gradients before clipping.

        With a norm that is not finite nothing is changed, so the weights stay good.
        """
        for master, gradient in zip(self.masters.values(), gradients, strict=True):
            master.grad = None if gradient is None else gradient.to(master.dtype)
        norm = torch.nn.utils.clip_grad_norm_(list(self.masters.values()), self._clip)
        if torch.isfinite(norm):
            for group in self._adam.param_groups:
                group["lr"] = rate
            self._adam.step()
            self._refresh()
        for master in self.masters.values():
            master.grad = None
        return float(norm)

    @torch.no_grad()
    def _refresh(self) -> None:
        for name, parameter in self.parameters.items():
            if self.masters[name] is not parameter:
                parameter.copy_(self.masters[name])

    def state(self) -> dict[str, torch.Tensor]:
        """Moments and step counts by parameter name, to be saved."""
        stored = self._adam.state_dict()["state"]
        return {
            f"{self._names[index]}|{key}": value
            for index, entry in stored.items()
            for key, value in entry.items()
        }

    @torch.no_grad()
    def restore(self, masters: dict[str, torch.Tensor], state: dict[str, torch.Tensor]) -> None:
        """Take weights and moments back."""
        for name, master in self.masters.items():
            master.copy_(masters[name])
        self._refresh()
        entries: dict[int, dict[str, torch.Tensor]] = {}
        for key, value in state.items():
            name, _, kind = key.rpartition("|")
            entries.setdefault(self._names.index(name), {})[kind] = value
        groups = self._adam.state_dict()["param_groups"]
        self._adam.load_state_dict({"state": entries, "param_groups": groups})
