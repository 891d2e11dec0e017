"""What a trace can be told. Every field has a string that says what it does."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from moescope.given import MOST_TOKENS, Seed


class TraceOptions(BaseModel):
    """How a corpus is run through a model and what is kept."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    layers: tuple[int, ...] | None = Field(
        None, description="the model's own numbers of the MoE layers to trace; all by default"
    )
    keep: Literal["aggregates", "sample", "all"] = Field(
        "sample",
        description="aggregates: sums only; sample: also a bounded sample of tokens with their "
        "routing; all: also every token, in shards/",
    )
    limit: int | None = Field(
        None,
        ge=1,
        le=MOST_TOKENS,
        description="stop each domain after this many tokens of its first documents",
    )
    match_length: int | None = Field(
        None,
        ge=2,
        le=MOST_TOKENS,
        description="compare documents cut alike: of each its first so many counted tokens; "
        "shorter ones are left out",
    )
    context: int | None = Field(
        None,
        ge=2,
        description="longest window in tokens; by default the model's context, at most 2048",
    )
    batch_tokens: int | None = Field(
        None,
        ge=1,
        le=MOST_TOKENS,
        description="token budget of one batch, padding included; automatic by default",
    )
    pool_tokens: int | None = Field(
        None,
        ge=1,
        le=MOST_TOKENS,
        description="tokens that are sorted by length together, and one shard's size; by default "
        "32,768, or 262,144 with the streamed engine, which reads the model once for each pool",
    )
    predictions: bool = Field(
        True, description="run the LM head too: loss by domain and the predicted next token"
    )
    generate: int = Field(
        0,
        ge=0,
        description="let the model continue each document's first window by this many tokens "
        "(greedy) and trace them too; windows are shortened so that they fit the context",
    )
    chat_template: bool = Field(
        False, description="wrap each document as a user's message in the model's chat template"
    )
    chat_text: bool = Field(
        False,
        description="the documents are chats that a template wrote already: read the control "
        "tokens in them as such",
    )
    count_template: bool = Field(False, description="count the tokens of the chat template too")
    seed: Seed = Field(0, description="decides which tokens are sampled, and all resampling")
    sample_tokens: int = Field(
        8192,
        ge=1,
        le=MOST_TOKENS,
        description="tokens of each domain (and phase) that the sample keeps",
    )
    token_budget: int = Field(
        250_000,
        ge=1,
        le=MOST_TOKENS,
        description="tokens of each domain that enter the token-id tables",
    )
    checkpoint_seconds: float = Field(
        20.0, ge=0, description="commit what is done after the first pool that ends this late"
    )

    def identity(self) -> dict[str, Any]:
        """The options that change results; a run can be resumed only with the same ones.

        Options that came later are named only where they are on, so that runs of versions without
        them go on.
        """
        made = self.model_dump(mode="json", exclude={"checkpoint_seconds"})
        return {k: v for k, v in made.items() if v or k not in ("chat_text", "match_length")}
