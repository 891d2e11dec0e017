"""Whether the hub can be asked at all: tried once, so that its absence costs seconds and one line.

The hub's own library tries for most of a minute, and says so on every attempt.
"""

from __future__ import annotations

import contextlib
import re
import threading
from functools import cache
from typing import Any

from moescope.progress import OnProgress, Progress
from moescope.words import said_by

_SECONDS = 5.0

_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


def is_name(text: str) -> bool:
    """Has it the form of a name on the hub, ``owner/name``?

    Example:
        >>> is_name("allenai/OLMoE-1B-7B-0924"), is_name("modle/"), is_name("../model")
        (True, False, False)
    """
    return _NAME.fullmatch(text) is not None


@cache
def why_unreachable() -> str | None:
    """Why the hub cannot be asked, or None; from then on its library reads its cache only."""
    from huggingface_hub import constants
    from huggingface_hub.utils import get_session  # type: ignore[attr-defined]

    if constants.HF_HUB_OFFLINE:
        return "HF_HUB_OFFLINE is set"
    try:
        get_session().head(constants.ENDPOINT, timeout=_SECONDS)
    except Exception as error:  # every network library has its own
        constants.HF_HUB_OFFLINE = True
        return said_by(error)
    return None


def telling(name: str, on_progress: OnProgress) -> Any:
    """What the hub's library takes for a bar, which tells how many bytes are here instead."""
    from tqdm import tqdm  # type: ignore[import-untyped]

    lock, most = threading.Lock(), [0.0]

    class Told(tqdm):  # type: ignore[misc]
        def __init__(self, *args: Any, **options: Any) -> None:
            options = {k: v for k, v in options.items() if k not in ("name", "disable")}
            super().__init__(*args, **{**options, "mininterval": 0.5})

        def display(self, *_: Any, **__: Any) -> None:
            with lock, contextlib.suppress(TypeError):  # nothing is known of the total yet
                if self.unit == "B" and self.n > most[0] and self.total:
                    most[0] = self.n
                    on_progress(Progress(f"fetching {name}", self.n, self.total, "bytes"))

        def close(self) -> None:
            self.disable = True

    return Told
