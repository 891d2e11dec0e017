"""The axis legend, the one way to write the name of an expert, and plans: sets of experts.

Axes, used as suffixes of local arrays (``topk_ids_TK``)::

    T  tokens            L  MoE layers            D  hidden size
    E  routed experts    K  experts per token     F  hidden size of an expert
    C  domains           N  documents             V  vocabulary

An expert is written ``L5E9``: layer 5 (the model's own number), expert 9. A plan carries the shape
of its model, so it can be checked here; otherwise this module knows nothing of models: whether
L5E9 exists is for the caller to say.
"""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from moescope.errors import BadInputError
from moescope.files import usable_path, write_bytes
from moescope.given import WHOLE, parse_json, read_text

__all__ = ["PLAN_SCHEMA", "ExpertPlan", "ExpertRef", "PlanEntry"]

PLAN_SCHEMA = 1
"""Version of the JSON that `ExpertPlan.write` makes."""

_SIGNATURE = b'"schema_version": 1,\n "model": {\n  "name": '
_PATTERN = re.compile(rf"^L({WHOLE})E({WHOLE})$", re.IGNORECASE)


class ExpertRef(NamedTuple):
    """One routed expert: the model's own layer number and the index of the expert in it.

    Example:
        >>> ExpertRef.parse("L5E9")
        ExpertRef(layer_idx=5, expert=9)
        >>> str(ExpertRef(5, 9))
        'L5E9'
    """

    layer_idx: int
    expert: int

    @classmethod
    def parse(cls, text: str) -> ExpertRef:
        """Read ``L5E9`` (either case).

        Raises:
            BadInputError: the text has another form.
        """
        match = _PATTERN.match(text.strip())
        if match is None:
            raise BadInputError(
                f"{text!r} names no expert: expected the form L5E9 (layer 5, expert 9)"
            )
        return cls(int(match[1]), int(match[2]))

    def __str__(self) -> str:
        return f"L{self.layer_idx}E{self.expert}"


class PlanEntry(NamedTuple):
    """One expert of a plan, why it was chosen, and the score that spoke for it, if any."""

    expert: ExpertRef
    reason: str
    score: float | None = None


@dataclass(frozen=True)
class ExpertPlan:
    """A set of experts with the reasons why they were chosen, bound to one shape of model.

    What chooses experts writes a plan; what ablates or tunes them reads it. The file is JSON with
    ``schema_version``, ``model`` (``name``, ``config_sha256``, ``layers``, ``num_experts``),
    ``created_by`` and ``experts`` (``expert``, ``reason``, ``score``).

    Attributes:
        model: name of the model, for people.
        config_sha256: hash of its configuration; another model's plan is refused by it.
        layers: numbers of the model's MoE layers.
        num_experts: E of each of them.
        entries: the experts, sorted; each once, at least one.
        created_by: what wrote the plan, with its version.

    Raises:
        BadInputError: no expert, one named twice, or one that the model does not have.
    """

    model: str
    config_sha256: str
    layers: tuple[int, ...]
    num_experts: tuple[int, ...]
    entries: tuple[PlanEntry, ...]
    created_by: str

    def __post_init__(self) -> None:
        object.__setattr__(self, "entries", tuple(sorted(self.entries, key=lambda e: e.expert)))
        if not self.entries:
            raise BadInputError("a plan needs at least one expert, got none")
        twice = [e for e, n in Counter(x.expert for x in self.entries).items() if n > 1]
        if twice:
            raise BadInputError(f"the plan names {twice[0]} more than once; name each expert once")
        if len(self.layers) != len(self.num_experts):
            raise BadInputError(
                f"the plan lists {len(self.layers)} layers but {len(self.num_experts)} numbers of "
                "experts; each layer has one"
            )
        odd = [e for e in self.entries if e.score is not None and not math.isfinite(e.score)]
        if odd:
            raise BadInputError(f"the score of {odd[0].expert} is {odd[0].score}; leave it out")
        self._refuse_unknown()

    def _refuse_unknown(self) -> None:
        sizes = dict(zip(self.layers, self.num_experts, strict=True))
        for ref in self.experts:
            if ref.layer_idx not in sizes:
                numbers = ", ".join(map(str, self.layers))
                raise BadInputError(
                    f"the plan names {ref}, but layer {ref.layer_idx} is no MoE layer of "
                    f"{self.model}; its MoE layers are {numbers}"
                )
            if ref.expert >= sizes[ref.layer_idx]:
                raise BadInputError(
                    f"the plan names {ref}, but layer {ref.layer_idx} of {self.model} has experts "
                    f"E0 to E{sizes[ref.layer_idx] - 1}"
                )

    @property
    def experts(self) -> tuple[ExpertRef, ...]:
        """The experts, sorted by layer and number."""
        return tuple(entry.expert for entry in self.entries)

    def require_model(
        self, name: str, config_sha256: str, layers: tuple[int, ...], num_experts: tuple[int, ...]
    ) -> None:
        """Refuse a model that the plan was not made for.

        Args:
            name: of the model at hand, for the message.
            config_sha256: of its configuration.
            layers: numbers of its MoE layers.
            num_experts: E of each of them.

        Raises:
            BadInputError: another configuration, or another shape under the same one.
        """
        if self.config_sha256 != config_sha256:
            raise BadInputError(
                f"the plan was made for {self.model} (configuration {self.config_sha256[:12]}…), "
                f"not for {name} (configuration {config_sha256[:12]}…); give the plan's model, or "
                "make a plan for this one"
            )
        if (self.layers, self.num_experts) != (layers, num_experts):
            raise BadInputError(
                f"the plan expects MoE layers {list(self.layers)} of {list(self.num_experts)} "
                f"experts, but {name} has {list(layers)} of {list(num_experts)}; make a new plan"
            )

    def write(self, path: str | Path) -> Path:
        """Write the plan as JSON, whole or not at all; returns the path.

        Raises:
            BadInputError: a file is there that is no plan.
            WriteError: disk full or no permission.
        """
        target = usable_path(path)
        write_bytes(target, self.to_json().encode(), _SIGNATURE)
        return target

    def to_json(self) -> str:
        """The text of the file."""
        data = {
            "schema_version": PLAN_SCHEMA,
            "model": {
                "name": self.model,
                "config_sha256": self.config_sha256,
                "layers": list(self.layers),
                "num_experts": list(self.num_experts),
            },
            "created_by": self.created_by,
            "experts": [
                {"expert": str(e.expert), "reason": e.reason, "score": e.score}
                for e in self.entries
            ],
        }
        return json.dumps(data, indent=1, ensure_ascii=False) + "\n"

    @classmethod
    def read(cls, path: str | Path) -> ExpertPlan:
        """Read a plan from a file.

        Raises:
            BadInputError: no such file, no JSON, another schema version, a missing or impossible
                field, an expert that the plan's model does not have.
        """
        source = Path(path)
        text = read_text(source)
        try:
            return cls.from_dict(parse_json(text))
        except BadInputError as error:
            raise BadInputError(f"{source}: {error}") from error

    @classmethod
    def from_dict(cls, data: Any) -> ExpertPlan:
        """A plan from what its JSON holds.

        Raises:
            BadInputError: see `read`.
        """
        version = data.get("schema_version") if isinstance(data, dict) else None
        if version != PLAN_SCHEMA:
            raise BadInputError(
                f"plan of schema version {version!r}, expected {PLAN_SCHEMA}; write it again with "
                "this moescope"
            )
        model, listed = _field(data, "model", dict), _field(data, "experts", list)
        return cls(
            model=_field(model, "name", str),
            config_sha256=_field(model, "config_sha256", str),
            layers=_numbers(model, "layers"),
            num_experts=_numbers(model, "num_experts"),
            entries=tuple(_entry(item) for item in listed),
            created_by=_field(data, "created_by", str),
        )


_KINDS: dict[type, str] = {dict: "an object", list: "a list", str: "text"}


def _field(data: Mapping[str, Any], name: str, kind: type) -> Any:
    value = data.get(name)
    if not isinstance(value, kind):
        raise BadInputError(f"the plan's {name!r} should be {_KINDS[kind]}, got {value!r}")
    return value


def _numbers(data: Mapping[str, Any], name: str) -> tuple[int, ...]:
    values = _field(data, name, list)
    if not all(type(v) is int and v >= 0 for v in values):
        raise BadInputError(f"the plan's {name!r} should be whole numbers, got {values!r}")
    return tuple(values)


def _entry(item: Any) -> PlanEntry:
    if not isinstance(item, dict):
        raise BadInputError(f"an entry of the plan should hold 'expert', got {item!r}")
    score = item.get("score")
    if score is not None and type(score) not in (int, float):
        raise BadInputError(f"the plan's 'score' should be a number or null, got {score!r}")
    return PlanEntry(
        ExpertRef.parse(_field(item, "expert", str)),
        str(item.get("reason") or ""),
        None if score is None else float(score),
    )
