"""The parts of a profile as plain records: what is known of one expert, and how sure it is.

A part that could not be measured is an `Absent` with the reason, never a zero. It knows nothing of
where numbers come from.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass, field
from html import escape
from typing import Any

from moescope.axes import ExpertRef

__all__ = [
    "Absent",
    "ContextList",
    "Contribution",
    "DomainUse",
    "Load",
    "PartnerList",
    "PartnerUse",
    "Profile",
    "PushList",
    "PushedToken",
    "Role",
    "SimilarExpert",
    "SimilarList",
    "SpeechList",
    "SpeechUse",
    "Sureness",
    "TokenList",
    "TokenUse",
    "VocabularyUse",
    "WeightNorm",
    "plain",
]

_DIGITS = 6


@dataclass(frozen=True)
class Absent:
    """A part that is not there, and why."""

    absent: str


@dataclass(frozen=True)
class Load:
    """How often the expert is used. Rates are of ``tokens``, the counted tokens of the run.

    ``load`` = count/(T·K), even share ``even`` = 1/E; ``rate`` = count/T, by chance ``rate_chance``
    = K/E, with its 95 % interval over documents; ``gate_mass``: mean weight over all tokens, 0
    where not chosen, with an interval over sampled documents; ``first_share``: share of tokens
    whose first choice it is.
    """

    count: int
    tokens: int
    documents: int
    load: float
    even: float
    rate: float
    rate_low: float
    rate_high: float
    rate_chance: float
    gate_mass: float
    gate_low: float
    gate_high: float
    first_share: float


@dataclass(frozen=True)
class DomainUse:
    """Use by one domain.

    ``rate``: share of the domain's tokens that chose the expert; ``others``: the same in all other
    domains; ``lift`` = rate/others. Intervals over documents; ``q``: false discovery rate over
    all layers × experts × domains, labels of documents permuted. ``of_expert``, ``of_text``: the
    domain's share of the expert's tokens, and of the text. ``by_token``: the rate that its token
    ids alone predict from the other domains. ``contribution``: mean ‖w·E(x)‖ on the domain.
    """

    domain: str
    tokens: int
    count: int
    documents: int
    rate: float
    low: float
    high: float
    others: float
    lift: float
    lift_low: float
    lift_high: float
    q: float
    of_expert: float
    of_text: float
    gate_mass: float
    gate_low: float
    gate_high: float
    by_token: float
    contribution: float = math.nan


@dataclass(frozen=True)
class TokenUse:
    """One token id: see `moescope.profiles.tokens_in.TokenLists`.

    ``documents``: sampled documents in which the expert served it.
    """

    token: str
    token_id: int
    count: int
    share: float
    of_token: float
    lift: float
    documents: int | None


@dataclass(frozen=True)
class TokenList:
    """Token ids beyond their share; ``overlap``: what two halves of the documents agree on."""

    rows: list[TokenUse]
    assignments: int
    min_count: int
    overlap: float


@dataclass(frozen=True)
class VocabularyUse:
    """How far the expert belongs to few token ids: see `moescope.profiles.tokens_in.Vocabulary`."""

    value: float
    null: float
    excess: float
    excess_halves: tuple[float, float]
    top_token: str
    top_share: float
    half_types: int
    text_half_types: int
    min_count: int


@dataclass(frozen=True)
class PartnerUse:
    """Another expert on the same tokens: N_ij, N_ij/N_i, and the lift with its 95 % interval."""

    expert: str
    count: int
    given: float
    lift: float
    low: float
    high: float


@dataclass(frozen=True)
class PartnerList:
    """Strongest partners; ``chance``: the lift that even random routing gives."""

    rows: list[PartnerUse]
    chance: float
    min_count: int


@dataclass(frozen=True)
class SpeechUse:
    """One part of speech: sampled assignments, share with its 95 % interval, share of the text."""

    tag: str
    count: int
    share: float
    low: float
    high: float
    text_share: float
    lift: float


@dataclass(frozen=True)
class SpeechList:
    """Parts of speech of the tokens that the expert serves, most frequent first."""

    rows: list[SpeechUse]
    assignments: int
    pipeline: str


@dataclass(frozen=True)
class Contribution:
    """How much the expert adds where it is chosen, on ``tokens`` measured assignments.

    ``mean``: of ‖w·E(x)‖ (REAP with the weights as multiplied), 95 % interval over documents;
    ``share``: of the layer's sum; ``load_share``: of the layer's measured assignments, to compare;
    ``weight``: mean w; ``activation``: mean ‖E(x)‖ (EAN), ``activation_share`` of the layer's sum.
    ``peak``: largest |component| of E(x) over all tokens read, ``counted_peak`` over counted ones,
    ``peak_ratio``: over the median expert's. ``super_rule``: the published rule for super experts
    holds (see the concept page; the largest of all experts always meets it if its layer is early).
    """

    tokens: int
    documents: int
    mean: float
    low: float
    high: float
    share: float
    load_share: float
    weight: float
    activation: float
    activation_share: float
    peak: float
    counted_peak: float
    peak_ratio: float
    super_rule: bool


@dataclass(frozen=True)
class ContextList:
    """Tokens of highest contribution with the text around them, repeats left out."""

    rows: list[dict[str, Any]]
    around: int
    per_document: int


@dataclass(frozen=True)
class PushedToken:
    """Mean Δlogit of one token: the expert's own, the layer's others, beyond, and both halves."""

    token: str
    token_id: int
    own: float
    others: float
    beyond: float
    half_a: float
    half_b: float


@dataclass(frozen=True)
class PushList:
    """What the expert pushes towards and away from, seen through the final norm and the head.

    ``agreement``: Spearman correlation between two halves of the documents over the vocabulary;
    ``promoted_overlap``, ``suppressed_overlap``: share of the 20 strongest tokens that the halves
    have in common; ``spread``: standard deviation of beyond over the vocabulary, in logits.
    ``factor``: between the experts' output and the residual stream; ``note``: what the lens
    leaves out.
    """

    promoted: list[PushedToken]
    suppressed: list[PushedToken]
    tokens: int
    agreement: float
    promoted_overlap: float
    suppressed_overlap: float
    spread: float
    factor: float
    note: str


@dataclass(frozen=True)
class SimilarExpert:
    """Mean cosine of two experts' outputs on the same inputs, and in each half of the documents."""

    expert: str
    cosine: float
    half_a: float
    half_b: float


@dataclass(frozen=True)
class SimilarList:
    """Most similar experts of the layer.

    ``tokens``: inputs that all of them were asked about, spread evenly over the text.
    """

    rows: list[SimilarExpert]
    tokens: int


@dataclass(frozen=True)
class WeightNorm:
    """Frobenius norm of one of its tensors, the layer's mean, and the z-score in the layer."""

    tensor: str
    norm: float
    layer_mean: float
    z: float


@dataclass(frozen=True)
class Role:
    """What the expert is, by rule: ``kind``, a few words, and the domain or token it is about."""

    kind: str
    words: str
    about: str | None = None


@dataclass(frozen=True)
class Sureness:
    """``level`` (high, moderate, low, none) by rule from assignments and documents."""

    level: str
    assignments: int
    documents: int


@dataclass(frozen=True)
class Profile:
    """Everything that is known of one expert, with how sure it is.

    ``summary`` is made from the numbers by rule (see `moescope.profiles.summary`). Flags: ``never
    chosen``, ``dead``, ``cold``, ``super``, ``token expert``.
    """

    expert: ExpertRef
    summary: str
    role: Role
    sure: Sureness
    flags: list[str]
    load: Load
    domains: list[DomainUse] | Absent
    tokens_in: TokenList | Absent
    vocabulary: VocabularyUse | Absent
    coactivated: PartnerList | Absent
    previous: PartnerList | Absent
    following: PartnerList | Absent
    parts_of_speech: SpeechList | Absent
    contribution: Contribution | Absent
    contexts: ContextList | Absent
    pushes: PushList | Absent
    similar: SimilarList | Absent
    weights: list[WeightNorm] | Absent
    source: dict[str, Any] = field(default_factory=dict)

    def __repr__(self) -> str:
        return f"<Profile {self.summary}>"

    def _repr_html_(self) -> str:
        figures = {
            "chosen": f"{100 * self.load.rate:.1f} % of tokens, by chance "
            f"{100 * self.load.rate_chance:.1f} %",
            "role": self.role.words,
            "sure": f"{self.sure.level}, from {self.sure.assignments:,} assignments in "
            f"{self.sure.documents:,} documents",
        }
        rows = "".join(f"<tr><th>{k}</th><td>{escape(v)}</td></tr>" for k, v in figures.items())
        return f"<p>{escape(self.summary)}</p><table>{rows}</table>"

    def to_dict(self) -> dict[str, Any]:
        """The profile as JSON values: 6 significant digits, None for what is not a number."""
        made = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        return {"expert": str(made.pop("expert")), **plain(made)}


def plain(value: Any) -> Any:
    """Any record, list, dict or number as JSON values; NaN and infinity become None."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, dict):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [plain(v) for v in value]
    if isinstance(value, float):
        return float(f"{value:.{_DIGITS}g}") if math.isfinite(value) else None
    return value
