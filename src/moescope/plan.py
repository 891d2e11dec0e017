"""A plan: which experts, why, and what to do to them; bound to the model that they belong to.

What chooses experts writes one (`moescope contrast`, a person), what ablates, steers or tunes them
reads it. It is JSON, made to be read and edited by hand.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainSerializer,
    ValidationError,
    field_validator,
    model_validator,
)

from moescope.axes import ExpertRef, require_experts
from moescope.errors import BadInputError
from moescope.files import usable_path, write_bytes
from moescope.given import first_problem, parse_json, read_text
from moescope.words import counted

PLAN_SCHEMA: Literal[2] = 2
"""Version of the JSON that `Plan.write` makes; version 1, without settings, is read too."""

PLAN_SIGNATURE = b'"kind": "plan"'


def _expert(given: Any) -> Any:
    return ExpertRef.parse(given) if isinstance(given, str) else given


_Expert = Annotated[ExpertRef, BeforeValidator(_expert), PlainSerializer(str)]
_Score = Annotated[float, Field(strict=True, allow_inf_nan=False)]
_Whole = Annotated[int, Field(ge=0, strict=True)]


class PlanEntry(NamedTuple):
    """One expert of a plan, why it was chosen, the score that spoke for it, and what to do to it.

    ``setting`` is what stands after the ``=`` of ``moescope steer --set``: ``+2.0``, ``x0.5``,
    ``mask``. None leaves it to the reader of the plan.
    """

    expert: _Expert
    reason: str | None = None
    score: _Score | None = None
    setting: str | None = None


class _Closed(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, populate_by_name=True)


class PlanModel(_Closed):
    """The model that a plan belongs to: its hashes decide, its name is for people.

    ``weights_sha256`` is given where experts were chosen by what these weights do; None takes any
    of this configuration. ``layers`` are the numbers of its MoE layers, with E of each.
    """

    name: str
    config_sha256: str
    weights_sha256: str | None = None
    layers: tuple[_Whole, ...]
    num_experts: tuple[_Whole, ...]


class Plan(_Closed):
    """A set of experts, bound to one shape of model.

    Attributes:
        model: that the experts belong to.
        created_by: what wrote the plan, with its version.
        found_by: how they were found, for people.
        entries: the experts, sorted; each once, at least one. ``experts`` in the file.

    Raises:
        BadInputError: no expert, one named twice, or one that the model does not have.
    """

    kind: Literal["plan"] = "plan"
    schema_version: Literal[1, 2] = PLAN_SCHEMA
    model: PlanModel
    created_by: str
    found_by: dict[str, Any] = {}
    entries: tuple[PlanEntry, ...] = Field(alias="experts")

    @field_validator("entries")
    @classmethod
    def _sorted(cls, entries: tuple[PlanEntry, ...]) -> tuple[PlanEntry, ...]:
        return tuple(sorted(entries, key=lambda e: e.expert))

    @model_validator(mode="after")
    def _belongs_together(self) -> Plan:
        if not self.entries:
            raise BadInputError("a plan needs at least one expert, got none")
        twice = [e for e, n in Counter(self.experts).items() if n > 1]
        if twice:
            raise BadInputError(f"the plan names {twice[0]} more than once; name each expert once")
        layers, sizes = self.model.layers, self.model.num_experts
        if len(layers) != len(sizes):
            raise BadInputError(
                f"the plan lists {counted(len(layers), 'layer')} but {len(sizes)} numbers of "
                "experts; each layer has one"
            )
        require_experts(self.experts, dict(zip(layers, sizes, strict=True)), self.model.name)
        return self

    @classmethod
    def of(
        cls,
        model: Mapping[str, Any],
        entries: Iterable[PlanEntry],
        created_by: str,
        *,
        by_weights: bool = False,
        found_by: Mapping[str, Any] | None = None,
    ) -> Plan:
        """A plan for a model.

        Args:
            model: as `moescope.measure.identity.describe_model` describes it.
            entries: the experts.
            created_by: what makes the plan.
            by_weights: the experts were chosen by what these weights do.
            found_by: how.

        Raises:
            BadInputError: see `Plan`.
        """
        known = {name: model[name] for name in PlanModel.model_fields}
        if not by_weights:
            known["weights_sha256"] = None
        data = {"model": known, "created_by": created_by, "found_by": dict(found_by or {})}
        return cls.from_dict({**data, "schema_version": PLAN_SCHEMA, "experts": list(entries)})

    @property
    def experts(self) -> tuple[ExpertRef, ...]:
        """The experts, sorted by layer and number."""
        return tuple(entry.expert for entry in self.entries)

    def settings(self, value: str | None = None) -> list[str]:
        """What ``moescope steer --set`` takes: experts with the same setting together.

        Args:
            value: for all experts of a plan without settings, such as ``mask``.

        Raises:
            BadInputError: an expert without a setting and no value, or both.
        """
        named: dict[str, list[str]] = {}
        for entry in self.entries:
            if value is not None and entry.setting is not None:
                raise BadInputError(
                    f"the plan says itself what to do to {entry.expert} ({entry.setting}), so "
                    f"{value} has no place; leave it out"
                )
            setting = value if entry.setting is None else entry.setting
            if setting is None:
                raise BadInputError(
                    f"the plan names {entry.expert} and not what to do to it; say it, such as +2.0 "
                    "or mask"
                )
            named.setdefault(setting, []).append(str(entry.expert))
        return [f"{','.join(experts)}={setting}" for setting, experts in named.items()]

    def require_model(self, model: Mapping[str, Any]) -> None:
        """Refuse a model that the plan was not made for: expert numbers mean nothing elsewhere.

        Args:
            model: as for `of`.

        Raises:
            BadInputError: another configuration, other weights where the plan is bound to them, or
                another shape under the same configuration.
        """
        own = self.model
        for what in ("config", "weights"):
            mine, theirs = getattr(own, f"{what}_sha256"), model[f"{what}_sha256"]
            if mine is not None and mine != theirs:
                raise BadInputError(
                    f"the plan was made for {own.name} ({what} {mine[:12]}…), not for "
                    f"{model['name']} ({what} {theirs[:12]}…); give the plan's model, or make a "
                    "plan for this one"
                )
        shape = list(model["layers"]), list(model["num_experts"])
        if (list(own.layers), list(own.num_experts)) != shape:
            raise BadInputError(
                f"the plan expects MoE layers {list(own.layers)} of {list(own.num_experts)} "
                f"experts, but {model['name']} has {shape[0]} of {shape[1]}; make a new plan"
            )

    def write(self, path: str | Path) -> Path:
        """Write the plan as JSON, whole or not at all; returns the path.

        Raises:
            BadInputError: a file is there that is not a plan.
            WriteError: disk full or no permission.
        """
        target = usable_path(path)
        write_bytes(target, self.to_json().encode(), PLAN_SIGNATURE)
        return target

    def to_json(self) -> str:
        """The text of the file."""
        entries = [{**e._asdict(), "expert": str(e.expert)} for e in self.entries]
        data = {**self.model_dump(exclude={"entries"}), "experts": entries}
        data["schema_version"] = PLAN_SCHEMA
        return json.dumps(data, indent=1, ensure_ascii=False) + "\n"

    @classmethod
    def read(cls, path: str | Path) -> Plan:
        """Read a plan from a file.

        Raises:
            BadInputError: no such file, no JSON, another kind or schema version, a missing or
                impossible field, an expert that the plan's model does not have.
        """
        source = Path(path)
        text = read_text(source)
        try:
            return cls.from_dict(parse_json(text))
        except BadInputError as error:
            raise BadInputError(f"{source}: {error}") from error

    @classmethod
    def from_dict(cls, data: Any) -> Plan:
        """A plan from what its JSON holds.

        Raises:
            BadInputError: see `read`.
        """
        if not isinstance(data, dict) or "schema_version" not in data:
            older = isinstance(data, dict) and data.get("kind") == "steering plan"
            made = "a plan of an older moescope" if older else "no plan"
            raise BadInputError(f"{made}; make one with moescope contrast MODEL … -o FOLDER")
        try:
            return cls.model_validate(data)
        except ValidationError as error:
            raise BadInputError(f"the plan's {first_problem(error)}") from error
