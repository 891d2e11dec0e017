"""What profiles can be told. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass

DEFAULT_PIPELINE = "en_core_web_sm"


@dataclass(frozen=True)
class ProfileOptions:
    """How profiles are made.

    Attributes:
        use_model: False leaves out what needs the model (contributions, contexts, pushes,
            similarity, weights) and says so.
        tokens_per_domain: counted tokens of each domain to measure; None: as many as the run
            sampled.
        window_tokens: a longer window gives its first so many tokens.
        pipeline: spaCy pipeline for parts of speech; None leaves them out.
    """

    use_model: bool = True
    tokens_per_domain: int | None = None
    window_tokens: int = 512
    pipeline: str | None = DEFAULT_PIPELINE
