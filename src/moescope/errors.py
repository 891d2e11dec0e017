"""Every error that moescope raises on purpose.

The tree::

    MoescopeError                 one line: what, where, got against expected, what to do
    ├── BadInputError             the caller can mend it; the command line exits with 2
    │   ├── ModelError            the model cannot be loaded, has no experts, or cannot be supported
    │   ├── CorpusError           the text cannot be read, is empty, or lacks a field
    │   ├── RunError              the run folder is missing, of another model, or damaged
    │   │   └── ResumeError       work was begun with something else, so it cannot be gone on with
    │   └── MissingExtraError     an optional dependency is absent; says how to install it
    ├── BusyError                 another process writes the folder; says which
    ├── LaunchError               a worker died again and again; the shards that were done stay
    ├── CoverageError             a router was not seen: its figures would be silent zeros
    ├── TrainingError             the loss is no longer a number; the weights before it are kept
    ├── InterruptedTrainingError  stopped by a signal, after a checkpoint
    └── WriteError                the disk is full or refuses; what was finished stays

The library raises; only ``moescope.cli`` turns an error into an exit code.
It knows nothing of models, text or runs.
"""

from __future__ import annotations

import errno

_NO_MEMORY = ("DefaultCPUAllocator", "out of memory", "Cannot allocate memory")


class MoescopeError(Exception):
    """Root of the tree. ``str(error)`` is one line that a person can act on."""

    exit_code = 1


class BadInputError(MoescopeError):
    """What was given cannot be used as it is."""

    exit_code = 2


class ModelError(BadInputError):
    """The model is unknown, dense, or of an architecture that cannot be read honestly."""


class CorpusError(BadInputError):
    """The corpus is missing, empty, of another format than its name says, or lacks a field."""


class RunError(BadInputError):
    """A run folder is missing, incomplete, altered, or belongs to another model or corpus."""


class ResumeError(RunError):
    """Work cannot be gone on with, because it was begun with something else."""


class CoverageError(MoescopeError):
    """A router that the anatomy names saw no token, so every figure on it would be a false zero."""


class BusyError(MoescopeError):
    """Another process is writing the folder; nothing was touched."""


class LaunchError(MoescopeError):
    """Workers could not be started, or one died more often than it is retried."""


class WriteError(MoescopeError):
    """Writing failed (full disk, no permission). Everything committed before stays usable."""


class TrainingError(MoescopeError):
    """Training broke down (a loss that is not a number); names the step and what is still good."""


class InterruptedTrainingError(MoescopeError):
    """Training was stopped by a signal; a checkpoint of that moment is written."""

    exit_code = 130


class MissingExtraError(BadInputError):
    """An optional dependency is not installed.

    Args:
        package: the module that could not be imported.
        extra: the extra of moescope that brings it.
        purpose: what it is needed for, as a noun phrase.
    """

    def __init__(self, package: str, extra: str, purpose: str) -> None:
        super().__init__(
            f"{purpose} needs the package {package!r}, which is not installed; "
            f"run: pip install 'moescope[{extra}]'"
        )


def lacks_memory(error: BaseException | None) -> bool:
    """Whether it came of too little memory, here or on a device, and so of nobody's input.

    Torch, CUDA and the libraries in Rust have words for it and no class.
    """
    while error is not None:
        if isinstance(error, MemoryError) or getattr(error, "errno", None) == errno.ENOMEM:
            return True
        quotes = isinstance(error, (OSError, LookupError, ValueError))  # names and values given
        if not quotes and any(words in str(error) for words in _NO_MEMORY):
            return True
        error = error.__cause__ or error.__context__
    return False
