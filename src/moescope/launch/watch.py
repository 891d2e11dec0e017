"""What is known of the shards while workers trace them: done, tokens, how often one was lost."""

from __future__ import annotations

from moescope.corpus import Shard
from moescope.errors import BadInputError, LaunchError
from moescope.launch.job import Parts
from moescope.launch.worker import Outcome
from moescope.progress import OnProgress, Progress, quiet
from moescope.words import counted

RETRIES = 3
"""How often a shard whose worker died is given to another one that gets no further."""


class Watch:
    """Keeps account of the shards and tells about it."""

    def __init__(self, parts: Parts, on_progress: OnProgress = quiet) -> None:
        self.parts, self._on_progress = parts, on_progress
        self._done = {s for s in parts.shards if parts.is_done(s)}
        self._tokens = {s: parts.tokens(s) for s in parts.shards}
        self._share: dict[Shard, float] = {}
        self._in_vain: dict[Shard, int] = {}
        self._committed = dict(self._tokens)

    @property
    def todo(self) -> list[Shard]:
        """The shards that are not finished, in order."""
        return [s for s in self.parts.shards if s not in self._done]

    def tell(self, note: str = "") -> None:
        """Report how far all shards are, those of earlier launches included."""
        shares = sum(1.0 if s in self._done else self._share.get(s, 0.0) for s in self._tokens)
        tokens, shards = sum(self._tokens.values()), len(self.parts.shards)
        stage = f"tracing, {len(self._done)}/{counted(shards, 'shard')}"
        total = tokens * shards / shares if shares else None
        self._on_progress(Progress(stage, tokens, total, "tokens", note))

    def advance(self, shard: Shard, tokens: int, share: float = 0.0) -> None:
        """A worker says how far it is."""
        self._tokens[shard] = tokens
        self._share[shard] = share
        self.tell()

    def finish(self, shard: Shard, outcome: Outcome) -> bool:
        """A worker says that it is done, or what went wrong.

        Returns:
            True when the shard is finished, False when it is to be tried again.

        Raises:
            BadInputError: it would go wrong again.
            LaunchError: likewise, or it went wrong too often.
        """
        if outcome.message is None and self.parts.is_done(shard):
            self._done.add(shard)
            self._tokens[shard] = self.parts.tokens(shard)
            self.tell(f"shard {shard} is done")
            return True
        if outcome.final:
            kind = BadInputError if outcome.exit_code == BadInputError.exit_code else LaunchError
            raise kind(f"shard {shard}: {outcome.message}")
        self.lose(shard, outcome.message or "its run is not finished")
        return False

    def lose(self, shard: Shard, reason: str) -> None:
        """A worker died; what it had not committed is not counted any more.

        Deaths count against a shard only while it gets no further: a long one may outlive many
        workers.

        Raises:
            LaunchError: so many workers died over it that another one would too.
        """
        tokens = self.parts.tokens(shard)
        further = tokens > self._committed[shard]
        self._in_vain[shard] = 1 if further else self._in_vain.get(shard, 0) + 1
        self._committed[shard] = self._tokens[shard] = tokens
        self.tell("a worker died; its shard goes on in another one")
        if self._in_vain[shard] > RETRIES:
            raise LaunchError(
                f"shard {shard}: {counted(self._in_vain[shard], 'worker')} died over it and got no "
                f"further, the last: {reason}; {len(self._done)} of "
                f"{counted(len(self.parts.shards), 'shard')} are "
                "finished and stay; mend the cause and give the same command again"
            )
