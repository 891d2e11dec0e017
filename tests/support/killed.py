"""A Python process that is killed in the middle of its work, as by a power cut."""

import os
import signal
import subprocess
import sys

_KILLER = """
import importlib, os, signal
module, _, path = {target!r}.partition(":")
*owners, name = path.split(".")
owner = importlib.import_module(module)
for part in owners:
    owner = getattr(owner, part)
own, calls = getattr(owner, name), [0]
def counted(*args, **kwargs):
    calls[0] += 1
    if calls[0] > {calls}:
        os.kill(os.getpid(), signal.SIGKILL)
    return own(*args, **kwargs)
setattr(owner, name, counted)
"""


def run_and_kill(script: str, target: str | None = None, calls: int = 0) -> bool:
    """Run a script in a new process; was it killed?

    Args:
        script: Python.
        target: ``module:Class.method`` that kills it (SIGKILL) when it is called once more.
        calls: calls of it that go well.
    """
    before = "" if target is None else _KILLER.format(target=target, calls=calls)
    done = subprocess.run(
        [sys.executable, "-c", before + script], env=dict(os.environ), capture_output=True,
        text=True, check=False,
    )  # fmt: skip
    if done.returncode == -signal.SIGKILL:
        return True
    assert done.returncode == 0, done.stderr
    return False
