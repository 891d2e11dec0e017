"""Processes of their own for moescope, without importing torch again in each.

One process imports everything and then only waits; each command is a fork of it. So it has a pid,
can be killed at any moment and holds nothing of the test's process, but starts at once.
"""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

STARTER = """
import json, os, sys
import pyarrow.parquet, torch, transformers
import transformers.models.auto.modeling_auto, transformers.models.auto.tokenization_auto
import transformers.integrations, transformers.models.olmoe.modeling_olmoe
import moescope, moescope.cli.main, moescope.metrics.runs, moescope.models, moescope.trace
torch.set_num_threads(1)

def child(code, words, out, err):
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    for number, path in ((1, out), (2, err)):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
    sys.argv = ["moescope", *words]
    try:
        exec(code, {"__name__": "__main__"})
    except SystemExit as ended:
        return ended.code or 0
    return 0

for line in sys.stdin:
    what, *given = json.loads(line)
    if what == "start":
        pid = os.fork()
        if pid == 0:
            ended = 70  # an exception that was not meant
            try:
                ended = child(*given)
            finally:
                sys.stdout.flush()
                sys.stderr.flush()
                os._exit(ended)
        print(pid, flush=True)
    else:
        done, status = os.waitpid(given[0], os.WNOHANG)
        print(json.dumps(os.waitstatus_to_exitcode(status) if done else None), flush=True)
"""

COMMAND = "from moescope.cli import main; main.run()"


class Starter:
    """Starts processes. Close it, and with it all that still run."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-c", STARTER],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.started: list[Started] = []

    def ask(self, *what: object) -> object:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(what) + "\n")
        self._process.stdin.flush()
        return json.loads(self._process.stdout.readline())

    def start(self, words: list[str], folder: Path, code: str = COMMAND) -> "Started":
        """Run the command line, or other code, with its output in files of the folder."""
        number = len(self.started)
        out, err = folder / f"{number}.out", folder / f"{number}.err"
        pid = self.ask("start", code, words, str(out), str(err))
        assert isinstance(pid, int)
        self.started.append(Started(self, pid, out, err))
        return self.started[-1]

    def close(self) -> None:
        for one in self.started:
            if one.poll() is None:
                one.kill()
                one.wait()
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()


class Started:
    """A process that was started, used as one of `subprocess`."""

    def __init__(self, starter: Starter, pid: int, out: Path, err: Path) -> None:
        self.pid, self.returncode = pid, None
        self._starter, self._out, self._err = starter, out, err

    def poll(self) -> int | None:
        if self.returncode is None:
            self.returncode = self._starter.ask("ended", self.pid)
        return self.returncode

    def wait(self, timeout: float = 300) -> int:
        deadline = time.monotonic() + timeout
        while self.poll() is None:
            assert time.monotonic() < deadline, f"it did not end within {timeout} s"
            time.sleep(0.005)
        return self.returncode

    def kill(self) -> None:
        os.kill(self.pid, signal.SIGKILL)

    @property
    def said(self) -> str:
        """What it wrote to stderr."""
        return self._err.read_text("utf-8")

    def prints(self, line: str, timeout: float = 120) -> bool:
        """Wait until it has written this first line to stdout."""
        deadline = time.monotonic() + timeout
        while not (self._out.exists() and self._out.read_text("utf-8").startswith(line)):
            if self.poll() is not None or time.monotonic() > deadline:
                return False
            time.sleep(0.002)
        return True
