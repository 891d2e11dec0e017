"""What a launch can be told."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from moescope.given import MOST_SHARDS, MOST_WORKERS


class LaunchOptions(BaseModel):
    """How a corpus is spread over workers."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    launcher: Literal["local", "ray"] = Field(
        "local", description="local: processes on this machine; ray: tasks of a Ray cluster"
    )
    workers: int | None = Field(
        None,
        ge=1,
        le=MOST_WORKERS,
        description="workers at a time; with ray by default as many as the cluster has room for",
    )
    shards: int | None = Field(
        None,
        ge=1,
        le=MOST_SHARDS,
        description="parts to cut the corpus into; by default one for each worker",
    )
    worker_cpus: float = Field(
        1.0, gt=0, description="processors that a Ray task asks for; also its threads"
    )
    worker_gpus: float = Field(0.0, ge=0, description="GPUs that a Ray task asks for")
    ray_address: str | None = Field(
        None, description="address of a Ray cluster; without it Ray is started on this machine"
    )
    keep_parts: bool = Field(False, description="keep the run of each shard in RUN/parts")
