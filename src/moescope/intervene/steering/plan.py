"""A steering plan: settings for ``moescope steer``, with the model they were found on and why.

`moescope contrast` writes one, ``moescope steer --plan`` carries it out. It is JSON, made to be
read and edited by hand: ``settings`` is what ``--set`` takes. An `ExpertPlan`, which names experts
and not what to do to them, becomes one with a value for all of them.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from moescope.axes import ExpertPlan
from moescope.errors import BadInputError, RunError
from moescope.files import usable_path, write_bytes
from moescope.given import first_problem, parse_json, read_text
from moescope.intervene.steering.settings import parse_setting

if TYPE_CHECKING:
    from moescope.models.loading import LoadedModel

__all__ = ["SteeringPlan", "read_plan", "require_model_of_plan", "write_plan"]


PLAN_SIGNATURE = b'"kind": "steering plan"'


class SteeringPlan(BaseModel):
    """What stands in the file. Unknown keys are refused."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    kind: Literal["steering plan"] = "steering plan"
    version: Literal[1] = 1
    model: str = Field(description="name of the model, for the reader")
    config_sha256: str = Field(description="of the model's configuration")
    weights_sha256: str | None = Field(
        None, description="of a selection of the model's weights; None: any of this configuration"
    )
    settings: list[str] = Field(description="as for `set`")
    experts: list[dict[str, Any]] = Field(default=[], description="why each was chosen")
    found_by: dict[str, Any] = Field(default={}, description="how they were found")


def read_plan(path: str | Path, value: str | None = None) -> SteeringPlan:
    """Read a plan and check that its settings can be read.

    Args:
        path: of a steering plan, or of an `ExpertPlan`.
        value: what to do to the experts of an `ExpertPlan`, such as ``+2.0`` or ``mask``.

    Raises:
        RunError: no such file, no plan, a setting of another form, or a value where it has no
            place or is missing.
    """
    file = Path(path)
    try:
        text = read_text(file)
    except BadInputError as error:
        raise RunError(f"`plan`: {error}") from error
    try:
        content = parse_json(text)
    except BadInputError as error:
        raise RunError(f"`plan` {file}: {error}") from error
    if isinstance(content, dict) and "schema_version" in content:
        return _of_experts(ExpertPlan.read(file), file, value)
    if not isinstance(content, dict) or content.get("kind") != "steering plan":
        raise RunError(
            f"`plan` {file} is no steering plan; make one with: moescope contrast … -o {file.name}"
        )
    if value is not None:
        raise RunError(f"`as` {value}: {file} says itself what to do to each expert; leave it out")
    try:
        plan = SteeringPlan(**content)
    except ValidationError as error:
        raise RunError(f"`plan` {file}: {first_problem(error)}") from error
    for setting in plan.settings:
        try:
            parse_setting(setting)
        except BadInputError as error:
            raise RunError(f"`plan` {file}: {error}") from error
    if not plan.settings:
        raise RunError(f"`plan` {file} has no settings: nothing was found to steer by")
    return plan


def _of_experts(plan: ExpertPlan, file: Path, value: str | None) -> SteeringPlan:
    names = ",".join(map(str, plan.experts))
    if value is None:
        raise RunError(
            f"`plan` {file} names {len(plan.experts)} experts and not what to do to them; add `as`,"
            " such as `as=+2.0` or `as=mask`"
        )
    parse_setting(f"{names}={value}")
    return SteeringPlan(
        model=plan.model, config_sha256=plan.config_sha256, settings=[f"{names}={value}"]
    )


def require_model_of_plan(loaded: LoadedModel, plan: SteeringPlan, path: str | Path) -> None:
    """Refuse a model that the plan was not made on: expert numbers mean nothing elsewhere.

    Raises:
        RunError: configuration or weights differ.
    """
    for what in ("config", "weights"):
        theirs = getattr(plan, f"{what}_sha256")
        if theirs is not None and getattr(loaded, f"{what}_hash") != theirs:
            raise RunError(
                f"`plan` {path} was made on another model ({plan.model}): its {what} differ from "
                f"that of {loaded.spec.model}, whose experts are others; give that model, or make "
                "a plan on this one with moescope contrast"
            )


def write_plan(plan: SteeringPlan, path: str | Path) -> Path:
    """Write a plan.

    Raises:
        BadInputError: a file is there that is no plan.
        WriteError: disk full or no permission.
    """
    text = json.dumps(plan.model_dump(mode="json"), indent=1, ensure_ascii=False)
    target = usable_path(path)
    write_bytes(target, (text + "\n").encode("utf-8"), PLAN_SIGNATURE)
    return target
