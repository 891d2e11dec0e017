"""A prompt of the tiny model, and its next token and choices without and with edits."""

import numpy as np
import torch

from moescope.intervene import (
    SteeringResult,
    edited,
    steer,
)
from moescope.models import LoadedModel
from moescope.models.capture import RoutingCapture
from moescope.models.edits import Edit

PROMPT = "the plan covers support for daily living and the court may review"


def ids_of(loaded: LoadedModel) -> torch.Tensor:
    return torch.tensor([loaded.tokenizer(PROMPT)["input_ids"]])


def next_logits(loaded: LoadedModel, edits: list[Edit]) -> np.ndarray:
    """The last row of a plain forward pass, by another way than the code under test."""
    with torch.inference_mode(), edited(loaded, edits):
        logits = loaded.model(ids_of(loaded)).logits
    return logits[0, -1].double().numpy()


def chosen(loaded: LoadedModel, layer: int) -> np.ndarray:
    """Experts of each prompt token in one layer, (T, K)."""
    sites = [m.site for m in loaded.anatomy.layers if m.layer_idx == layer]
    with torch.inference_mode(), RoutingCapture(loaded.model, sites) as capture:
        loaded.model(ids_of(loaded))
        return capture.take()[layer].topk_ids.numpy()


def quick(loaded: LoadedModel, edits: Edit | list[Edit], **options: object) -> SteeringResult:
    chosen_options = {"generate": 0, "controls": 0, **options}
    return steer(loaded, PROMPT, edits, **chosen_options)  # type: ignore[arg-type]
