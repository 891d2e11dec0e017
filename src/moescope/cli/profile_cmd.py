"""`moescope profile`: what single experts do, or all of them on a page to browse."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Self

from pydantic import model_validator

from moescope.cli.asked import asked
from moescope.cli.settings import Experts, ModelArgs, TableOrJson, WideArgs
from moescope.cli.tables import Sheet, write_json
from moescope.cli.terminal import output, progress
from moescope.cli.verb import Argument, Flag, note, of, verb
from moescope.errors import BadInputError
from moescope.models import ModelSpec
from moescope.models.spec import DtypeName
from moescope.profiles.options import ProfileOptions
from moescope.progress import Progress
from moescope.words import counted

if TYPE_CHECKING:
    from moescope.metrics.runs import AnalyzedRun
    from moescope.profiles.facts import Profiles


class ProfileArgs(ModelArgs, WideArgs):
    """Everything that `profile` can be told."""

    run: Annotated[str, Argument("RUN")]
    """run folder"""
    experts: Annotated[Experts, Argument("EXPERT...", list[str])] = ()
    """experts, such as L5E9 or L5E9,L3E0-3,L7E*"""
    all: bool = False
    """every expert, with an index page"""
    model: Annotated[str | None, Flag()] = None  # type: ignore[assignment]
    """hub id or folder of the run's model; by default as the run names it"""
    dtype: DtypeName | None = None  # type: ignore[assignment]
    """precision; by default that of the run"""
    no_model: bool = False
    """leave out what needs the model, and say so"""
    tokens: int | None = of(ProfileOptions, "tokens_per_domain")
    pipeline: str = of(ProfileOptions, "pipeline")
    format: TableOrJson = "table"
    """how to print"""

    @model_validator(mode="after")
    def _go_together(self) -> Self:
        if self.all == bool(self.experts):
            raise BadInputError("name experts such as L5E9, or give `all`; one of the two")
        if self.no_model and self.model:
            raise BadInputError("`model` and `no_model` exclude each other")
        if self.no_model and self.tokens is not None:
            raise BadInputError(
                "`tokens` says how much to measure with the model; `no_model` has none"
            )
        return self

    def spec_of(self, run: AnalyzedRun) -> ModelSpec:
        """The model: the run's where none is named."""
        known = run.manifest.model
        named = self.model or self.revision
        return ModelSpec(
            self.model or str(known.get("name")),
            self.revision if named else known.get("revision"),
            self.dtype or "auto",
            self.device,
            self.trust_remote_code,
        )

    def options(self) -> ProfileOptions:
        """How profiles are made."""
        return ProfileOptions(
            use_model=not self.no_model,
            tokens_per_domain=self.tokens,
            pipeline=None if self.pipeline.lower() == "none" else self.pipeline,
        )


@verb()
def profile(settings: ProfileArgs) -> None:
    """Profile experts: what they serve, where they contribute most, what they push towards.

    Each profile is written to RUN/profiles as JSON and as a page; --all writes an index of every
    expert to browse. What needs the model is measured once, for all experts, and kept beside the
    run.

    Example: moescope profile my-run L5E9
    """
    from moescope.metrics.runs import open_run

    opened = open_run(settings.run)
    spec, options = settings.spec_of(opened), settings.options()
    from moescope.profiles.profile import profile_experts, write_profiles
    from moescope.report.contents import renew_contents
    from moescope.report.profile_page import build_profile_page

    with progress() as show:
        chosen = None if settings.all else settings.experts
        made = profile_experts(opened, chosen, options, model=spec, on_progress=show)
        show(Progress("writing"))
        with opened.writing():
            settings.write_to(write_profiles(opened, made, index=settings.all))
        parts = [made] if settings.all else [made[i : i + 1] for i in range(len(made))]
        command = asked("profile", settings)
        pages = [build_profile_page(opened, part, again=command) for part in parts]
    renew_contents(opened.path, note)
    if settings.format == "json":
        for one in made:
            write_json(one.to_dict())
        return
    if settings.all:
        _print_counts(made)
    else:
        from moescope.cli.profile_text import print_profile

        for one in made:
            print_profile(one, settings)
    for page in pages:
        output.print(str(page), soft_wrap=True)


def _print_counts(made: Profiles) -> None:
    """How many experts each domain uses more and less, and what else stands out."""
    from collections import Counter

    from moescope.metrics.specialization import RULE
    from moescope.profiles.facts import USES

    uses = made.uses()
    if uses:
        table = Sheet(f"{counted(len(made), 'expert')}, by domain", "<domain", *USES)
        for domain, row in uses.items():
            table.add(domain, *(row[how] for how in USES))
        table.print()
        output.print(RULE, style="dim")
    table = Sheet(f"{counted(len(made), 'expert')}, each counted once", "<what", "experts")
    for kind, count in Counter(made.column("role_kind")).most_common():
        table.add(_KINDS.get(kind, kind), count)
    for flag, count in sorted(Counter(f for own in made.column("flags") for f in own).items()):
        table.add(f"flag: {flag}", count)
    table.print()


_KINDS = {
    "domain": "serves a domain",
    "avoids": "used less for a domain",
    "none": "no domain stands out",
    "untested": "domains not compared",
}
