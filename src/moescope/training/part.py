"""What the sections of a recipe are made of: rules for every key, and weights that may change."""

from __future__ import annotations

import math
from typing import Annotated, Any, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, field_validator

from moescope.given import MAX_SEED

_LARGEST = 1e15


class Part(BaseModel):
    """A section: unknown keys, infinities and what is not a number are refused."""

    model_config = ConfigDict(
        extra="forbid",
        protected_namespaces=(),
        use_attribute_docstrings=True,
        allow_inf_nan=False,
    )

    @field_validator("*", mode="before")
    @classmethod
    def _numbers_are_numbers(cls, value: Any, info: ValidationInfo) -> Any:
        """YAML's yes is not 1, and no setting has twenty digits."""
        kind = cls.model_fields[info.field_name or ""].annotation
        if isinstance(value, bool) and bool not in (kind, *get_args(kind)):
            raise ValueError(f"expected something else than {str(value).lower()}")
        if isinstance(value, int) and abs(value) > MAX_SEED:
            raise ValueError(f"expected a number of at most {len(str(MAX_SEED))} digits")
        if isinstance(value, float) and math.isfinite(value) and abs(value) > _LARGEST:
            raise ValueError(f"expected a number of at most {_LARGEST:g}")
        return value


class Ramp(Part):
    """A weight that changes linearly over the first part of training, then stays."""

    start: float = Field(ge=0)
    """Weight at the first step."""
    end: float = Field(ge=0)
    """Weight after the ramp."""
    over: float = Field(gt=0, le=1)
    """Share of the training steps that the ramp takes."""

    def at(self, progress: float) -> float:
        """The weight when ``progress`` (0 to 1) of the steps are done."""
        return self.start + (self.end - self.start) * min(1.0, progress / self.over)


Weight = Annotated[float, Field(ge=0)] | Ramp


def weight_at(weight: Weight, progress: float) -> float:
    """A weight, fixed or a ramp, when ``progress`` (0 to 1) of the steps are done."""
    return weight.at(progress) if isinstance(weight, Ramp) else weight


Beta = Annotated[float, Field(ge=0, lt=1)]
