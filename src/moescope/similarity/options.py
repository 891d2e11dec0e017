"""What a comparison of experts can be told. Imports no torch."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from moescope.given import Seed

Method = Literal["cosine", "cka", "weights", "router"]

METHODS: tuple[Method, ...] = ("cosine", "cka", "weights", "router")
"""Every method."""

MapKind = Literal["pca", "umap"]


class SimilarityOptions(BaseModel):
    """What is compared, on how much text, in how much memory."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    methods: tuple[Method, ...] = Field(
        METHODS, min_length=1, description="cosine and cka of outputs; weights; router rows"
    )
    layers: tuple[int, ...] | None = Field(
        None,
        description="the model's own numbers of the MoE layers; all (of a run: its) by default",
    )
    tokens: int = Field(
        10_000, ge=2, description="tokens in all, spread evenly over domains; work grows with the "
        "square for CKA"
    )  # fmt: skip
    window_tokens: int = Field(
        128, ge=1, description="most tokens of one window of a document: shorter ones bring more "
        "documents, the unit of intervals"
    )  # fmt: skip
    seed: Seed = Field(0, description="of shuffled experts, map points and relabellings")
    memory: float = Field(
        1e9, ge=1e6, description="bytes for outputs and products beside the model; what does not "
        "fit goes to a file"
    )  # fmt: skip
    reference: int = Field(
        4, ge=0, description="experts with shuffled weights that answer too, as a reference"
    )
    maps: tuple[MapKind, ...] = Field((), description="two-dimensional maps of weighted outputs")
    map_points: int = Field(4000, ge=5, description="most points of a layer's map")
