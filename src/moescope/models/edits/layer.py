"""The edits in force on one layer, and which rows and experts of a pass they name."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

import torch
from torch import nn

from moescope.models.anatomy import MoELayer
from moescope.models.edits.edit import Edit
from moescope.models.window import PassWindow

__all__ = ["LayerEdits"]


@dataclass
class LayerEdits:
    """The edits of one layer, its modules, and how often its router was asked in this pass."""

    layer: MoELayer
    window: PassWindow
    router: nn.Module
    block: nn.Module
    experts: nn.Module
    edits: list[Edit] = field(default_factory=list)
    calls: int = 0

    @property
    def name(self) -> str:
        """Of the router, as an error says it."""
        return f"{self.layer.site.router} ({type(self.router).__name__})"

    def ids(self, edit: Edit, device: torch.device) -> torch.Tensor:
        """Numbers of the edit's experts in this layer."""
        here = [ref.expert for ref in edit.experts if ref.layer_idx == self.layer.layer_idx]
        return torch.tensor(here, device=device, dtype=torch.long)

    def rows(self, edit: Edit, like: torch.Tensor) -> torch.Tensor:
        """Which rows the edit concerns, (T, 1) bool."""
        if edit.positions is None:
            return torch.ones((like.shape[0], 1), dtype=torch.bool, device=like.device)
        return self.window.rows(edit.positions, like.shape[0]).to(like.device)[:, None]

    def cells(self, edits: Iterable[Edit], like_TE: torch.Tensor) -> torch.Tensor:
        """Which experts these edits name at which rows, (T, E) bool."""
        cells_TE = torch.zeros(like_TE.shape, dtype=torch.bool, device=like_TE.device)
        for edit in edits:
            cells_TE[:, self.ids(edit, like_TE.device)] |= self.rows(edit, like_TE)
        return cells_TE

    def hit(self, edits: Iterable[Edit], ids_TK: torch.Tensor) -> torch.Tensor:
        """Which of the choices these edits name, (T, K) bool."""
        hit_TK = torch.zeros(ids_TK.shape, dtype=torch.bool, device=ids_TK.device)
        for edit in edits:
            named = torch.isin(ids_TK, self.ids(edit, ids_TK.device))
            hit_TK = hit_TK | (named & self.rows(edit, ids_TK))
        return hit_TK
