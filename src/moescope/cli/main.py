"""The command line: verbs, and the one place where an error becomes an exit code.

Data goes to stdout, progress and warnings to stderr. Exit 0: done; 1: failed; 2: bad input;
130: interrupted.
"""

from __future__ import annotations

import errno
import os
import sys
import warnings
from importlib import import_module
from typing import Annotated, Any

import typer
from pydantic import ValidationError

from moescope import __version__
from moescope.cli.help import MAX_WIDTH, SECTIONS, VerbHelp, Verbs
from moescope.cli.resume import INTERRUPTED, INTERRUPTED_CODE
from moescope.cli.terminal import bounded, clean, errors, tolerate
from moescope.cli.verb import VERBS, note, typed
from moescope.errors import BadInputError, MoescopeError, lacks_memory
from moescope.given import first_problem
from moescope.kernels import keep_few_kernels
from moescope.versions import untested
from moescope.words import one_line

_UsageError: Any = typer.BadParameter.__mro__[1]
"""Wrong words on the command line; typer may bring click's classes under a name of its own."""

_show_warning = warnings.showwarning

_FOR_MAKERS = (DeprecationWarning, FutureWarning, PendingDeprecationWarning, ResourceWarning)

_NAMES = {
    errno.ENAMETOOLONG, errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.EACCES, errno.EPERM,
    errno.ELOOP, errno.EINVAL, errno.ENXIO, errno.ENODEV, errno.EEXIST,
}  # fmt: skip
"""What a system says of a path that is not what it should be; the rest is no fault of the input."""

app = typer.Typer(
    name="moescope",
    cls=Verbs,
    help="See which experts of a Mixture-of-Experts model serve which text, layer by layer.",
    add_completion=False,
    rich_markup_mode=None,
    context_settings={"max_content_width": MAX_WIDTH, "help_option_names": ["--help", "-h"]},
    pretty_exceptions_enable=False,
)
NAMES = [name for names in SECTIONS.values() for name in names]

# one verb needs no settings of the others, which take longer to make than a table to print
for _name in [name for name in sys.argv[1:2] if name in NAMES] or NAMES:
    import_module(f"moescope.cli.{_name}_cmd")
    app.command(_name, cls=VerbHelp, help=VERBS[_name].help)(VERBS[_name].command)


def _show_version(wanted: bool) -> None:
    if wanted:
        print(f"moescope {__version__}")
        raise typer.Exit


_FILES_ONLY = {"compare", "merge", "report", "select", "table"}
"""Verbs that ask no model, so it is the same to them which transformers there is."""


@app.callback()
def _main(
    context: typer.Context,
    version: Annotated[  # noqa: ARG001 -- its callback acts on it
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="show and exit")
    ] = False,
) -> None:
    """See which experts of a Mixture-of-Experts model serve which text, layer by layer."""
    remark = untested()
    if remark and context.invoked_subcommand not in _FILES_ONLY and "--help" not in sys.argv:
        note(remark)


def run() -> None:
    """Run the command that was typed; `moescope.cli.entry` is the entry point."""
    tolerate()
    sys.argv += ["--help"] * (len(sys.argv) == 1)
    keep_few_kernels()
    warnings.showwarning = _warn
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")  # there is one bar, and it is ours
    sys.exit(_run())


def _run() -> int:
    try:
        _refuse_undecodable(sys.argv[1:])
        code = app(standalone_mode=False)
    except MoescopeError as error:
        return _fail(str(error), error.exit_code)
    except (typer.Abort, KeyboardInterrupt):
        return _fail(INTERRUPTED, INTERRUPTED_CODE)
    except _UsageError as error:
        context = getattr(error, "ctx", None)
        where = context.command_path if context else "moescope"
        return _fail(f"{error.format_message()} See: {where} --help", 2)
    except ValidationError as error:
        return _fail(f"{first_problem(error)}, got {error.errors()[0]['input']!r}", 2)
    except BrokenPipeError:
        return 0
    except Exception as error:
        if lacks_memory(error):
            line = "there is not enough memory for this; take less text or a smaller model"
            return _fail(line, 1)
        if isinstance(error, OSError) and error.errno is not None:
            return _fail(_of_system(error), 2 if error.errno in _NAMES else 1)
        if os.environ.get("MOESCOPE_DEBUG"):
            raise
        kind = type(error).__name__
        first = " ".join(str(error).split())[:300]
        return _fail(
            f"{kind}: {first} (a fault in moescope or below it; MOESCOPE_DEBUG=1 shows where)", 1
        )
    if code == INTERRUPTED_CODE:  # typer's answer to Ctrl-C
        return _fail(INTERRUPTED, INTERRUPTED_CODE)
    return int(code or 0)


def _warn(message: Warning | str, category: type[Warning], *where: Any, **more: Any) -> None:
    """A warning is a line like every other; what is for the makers of libraries is not shown."""
    if os.environ.get("MOESCOPE_DEBUG"):
        _show_warning(message, category, *where, **more)
    elif category.__module__.partition(".")[0] == "moescope":
        note(str(message))
    elif not issubclass(category, _FOR_MAKERS):
        note(f"a library warns: {one_line(' '.join(str(message).split()), 300)}", "")


def _fail(line: str, code: int) -> int:
    line = typed(" ".join(line.split()))
    errors.print(f"error: {bounded(line)}", style="bold red", soft_wrap=True)
    return code


def _of_system(error: OSError) -> str:
    names = [str(n) for n in (error.filename, error.filename2) if n is not None]
    return f"{' and '.join(names) or 'reading or writing failed'}: {error.strerror}"


def _refuse_undecodable(words: list[str]) -> None:
    """Text must be text: what is not UTF-8 could be neither tokenized nor written down."""
    for word in words:
        try:
            word.encode("utf-8")
        except UnicodeEncodeError as error:
            raise BadInputError(
                f"the argument {clean(word)} is not UTF-8 text; give it as UTF-8, and rename "
                "a file that is called so"
            ) from error
