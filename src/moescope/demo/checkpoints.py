"""The demo model as it was early in its training, kept small.

Each matrix is stored as int8 with one scale for each of its rows, which is half the size of
bfloat16; vectors are stored as they are. `restore_checkpoint` writes a stock model folder again, so
every verb works on it. What the rounding changes is on the model's card.
"""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from moescope.errors import BadInputError
from moescope.files import claim, replacing, write_bytes

_HERE = Path(__file__).parent

CHECKPOINTS = _HERE / "checkpoints"
"""One safetensors file per kept step; they are in a clone, not in the installed package."""

_FINAL = _HERE / "moe-10m"
_SCALE = ".row_scale"
_LEVELS = 127


def checkpoint_steps() -> list[int]:
    """Training steps at which the demo model was kept, ascending; none outside a clone."""
    return sorted(int(p.stem.removeprefix("step-")) for p in CHECKPOINTS.glob("step-*.safetensors"))


def pack_checkpoint(folder: Path, target: Path) -> None:
    """Store the weights of a stock model folder as int8 rows.

    A row w becomes round(w / s) with s = max|w| / 127, so no weight moves by more than s / 2.
    """
    packed: dict[str, torch.Tensor] = {}
    for name, tensor in load_file(folder / "model.safetensors").items():
        if tensor.dim() != 2:
            packed[name] = tensor
            continue
        rows = tensor.float()
        scale = rows.abs().amax(dim=1, keepdim=True).clamp_min(1e-12) / _LEVELS
        packed[name] = (rows / scale).round().to(torch.int8)
        packed[name + _SCALE] = scale
    target.parent.mkdir(parents=True, exist_ok=True)
    save_file(packed, target)


def restore_checkpoint(step: int, folder: str | Path) -> Path:
    """Write the demo model of an early step as a stock model folder.

    Args:
        step: one of `checkpoint_steps()`.
        folder: where to: new, empty, or one that this wrote before.

    Returns:
        The folder, which ``from_pretrained`` and every verb take as a model.

    Raises:
        BadInputError: no such step, or none is here because this is not a clone.
    """
    with claim(folder, "model") as target:
        return write_checkpoint(step, target)


def write_checkpoint(step: int, target: Path) -> Path:
    """The same, into a folder that is held, or one inside it."""
    steps = checkpoint_steps()
    if not steps:
        raise BadInputError(
            "the early steps of the demo model are not part of the installed package; they are in "
            f"a clone of the repository: pip install -e CLONE, then ask for step {step} again"
        )
    if step not in steps:
        raise BadInputError(
            f"the demo model was not kept at step {step}; it was at {', '.join(map(str, steps))}"
        )
    stored = load_file(CHECKPOINTS / f"step-{step:06d}.safetensors")
    weights = {
        name: (tensor.float() * stored[name + _SCALE]).to(torch.bfloat16)
        if name + _SCALE in stored
        else tensor
        for name, tensor in stored.items()
        if not name.endswith(_SCALE)
    }
    for path in _FINAL.glob("*.json"):
        write_bytes(target / path.name, path.read_bytes())
    with replacing(target / "model.safetensors") as file:
        save_file(weights, file, metadata={"format": "pt"})
    return target
