"""Checkpoints to resume from, and the stock model that is kept or shipped.

A checkpoint is a folder, written beside and renamed as a whole, so there is always one that is
complete. Only safetensors and JSON are written, each with its checksum in the run's ledger.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import torch
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError
from safetensors.torch import load_file, save_file

from moescope.errors import RunError
from moescope.files import plain_name, replacing_folder, require_intact
from moescope.given import first_problem
from moescope.models.targets import kept_wide
from moescope.training.network import Network
from moescope.training.optimizer import Optimizer
from moescope.words import said_by

_STATE = "state.json"
_PARTS = ("weights", "optimizer", "buffers", "arrays")


class _Kept(BaseModel):
    """A model kept on the way."""

    model_config = ConfigDict(extra="forbid")
    step: int = Field(ge=1)
    share: float
    path: Annotated[str, AfterValidator(plain_name)]


class _State(BaseModel):
    """``state.json``: where the training was."""

    model_config = ConfigDict(extra="forbid")
    step: int = Field(ge=0)
    seconds: float = Field(ge=0, allow_inf_nan=False)
    recipe: str
    data: str
    kept: list[_Kept]
    evaluated: int = Field(ge=-1)
    losses: dict[str, float]
    torch: str


def save_checkpoint(
    folder: Path,
    network: Network,
    optimizer: Optimizer,
    state: dict[str, Any],
    arrays: dict[str, torch.Tensor],
) -> None:
    """Replace the checkpoint in ``folder`` by the present moment, selection biases included.

    Raises:
        WriteError: disk full or no permission; the checkpoint before stays.
    """
    parts = {
        "weights": {name: m.detach().contiguous() for name, m in optimizer.masters.items()},
        "optimizer": optimizer.state(),
        "buffers": {name: b.contiguous() for name, b in _buffers(network).items()},
        "arrays": arrays,
    }
    with replacing_folder(folder) as fresh:
        for name, tensors in parts.items():
            save_file(tensors, fresh / f"{name}.safetensors")
        (fresh / _STATE).write_text(json.dumps(state, indent=1), encoding="utf-8")


def read_state(folder: Path) -> tuple[Path, dict[str, Any]] | None:
    """Where the newest complete checkpoint is and its state, or None without one.

    Raises:
        RunError: it was altered.
    """
    for candidate in (folder, folder.with_name(folder.name + ".old")):
        if (candidate / _STATE).is_file():
            _require_intact(candidate, [_STATE])
            text = (candidate / _STATE).read_text(encoding="utf-8")
            try:
                return candidate, _State.model_validate_json(text, strict=True).model_dump()
            except ValidationError as error:
                raise RunError(
                    f"{candidate / _STATE} is damaged ({first_problem(error)}); restore it, or "
                    "begin again in a new folder"
                ) from error
    return None


def _require_intact(folder: Path, names: Iterable[str]) -> None:
    noted = folder.name.removesuffix(".old")
    for name in names:
        require_intact(folder.parent, f"{noted}/{name}", folder / name)


def load_checkpoint(
    folder: Path, network: Network, optimizer: Optimizer
) -> dict[str, torch.Tensor]:
    """Put a checkpoint's weights, moments and buffers back; returns the other arrays.

    Raises:
        RunError: a file is missing, was altered, or does not fit.
    """
    _require_intact(folder, [f"{name}.safetensors" for name in _PARTS])
    try:
        weights = load_file(folder / "weights.safetensors")
        optimizer.restore(weights, load_file(folder / "optimizer.safetensors"))
        stored = load_file(folder / "buffers.safetensors")
        for name, buffer in _buffers(network).items():
            buffer.copy_(stored[name])
        arrays: dict[str, torch.Tensor] = load_file(folder / "arrays.safetensors")
        return arrays
    except (OSError, KeyError, ValueError, RuntimeError) as error:
        raise RunError(
            f"the checkpoint {folder} is damaged ({said_by(error, 160)}); delete "
            "the folder to start again, or restore it"
        ) from error


def _buffers(network: Network) -> dict[str, torch.Tensor]:
    """Buffers that training changes; rotary tables follow from the config."""
    return {
        name: buffer
        for name, buffer in network.model.named_buffers()
        if name in network.model.state_dict()
    }


@contextmanager
def rounded(network: Network, optimizer: Optimizer, dtype: torch.dtype) -> Iterator[None]:
    """Compute with the weights that `export_model` writes, for as long as the block runs.

    Args:
        network: what is trained; its own weights are back afterwards, bit for bit.
        optimizer: its masters hold the exact weights.
        dtype: of the weights in the file.
    """
    parameters = dict(network.model.named_parameters())
    kept = {n: p.detach().clone() for n, p in parameters.items() if p.dtype != dtype}
    with torch.no_grad():
        try:
            for name in kept:
                parameters[name].copy_(optimizer.masters[name].to(dtype))
            yield
        finally:
            for name, weight in kept.items():
                parameters[name].copy_(weight)


def export_model(
    network: Network, optimizer: Optimizer, tokenizer: Any, folder: Path, dtype: torch.dtype
) -> None:
    """Save what was trained as a stock transformers model that `from_pretrained` loads.

    The weights are of ``dtype``; what the family keeps in float32 stays so.
    """
    from transformers import AutoModelForCausalLM

    model = network.model
    stock = AutoModelForCausalLM.from_config(model.config, dtype=dtype)
    wide = kept_wide(stock, dtype)
    with torch.no_grad():
        masters, parameters = optimizer.masters, dict(model.named_parameters())
        for name, parameter in stock.named_parameters():
            parameter.copy_(masters.get(name, parameters[name]))
        stored = dict(model.named_buffers())
        for name, buffer in stock.named_buffers():
            if wide is not None and wide.search(name):  # a selection bias is not rounded
                buffer.data = buffer.data.float()
            buffer.copy_(stored[name])
    with replacing_folder(folder) as fresh:
        stock.save_pretrained(fresh)
        tokenizer.save_pretrained(fresh)
        for path in fresh.iterdir():
            path.chmod(0o644)
