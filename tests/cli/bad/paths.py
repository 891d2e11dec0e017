"""Paths of inputs that cannot be read: of another kind, dangling, too long, empty, a device."""

import os
from pathlib import Path

from tests.cli.bad import case, each

TRACE = "trace MOE TEXTS -o r"
LONG = "n" * 300

MODELS = (
    "inspect {}", "trace {} TEXTS -o r", "analyze {} TEXTS -o r", 'paths {} "a b" "a c"',
    'capacity {} "a b"', "steer {} --prompt plan --set L1E3=+2",
    "contrast {} --with TEXTS --without OTHERTEXTS", "similarity {} TEXTS -o r",
    "ablate {} --corpus TEXTS --experts L1E3 -o r", "import vllm TEXTS -o r --model {}",
)  # fmt: skip
CORPORA = (
    "trace MOE {} -o r", "analyze MOE {} -o r", "contrast MOE --with {} --without TEXTS",
    "similarity MOE {} -o r", "ablate MOE --corpus {} --experts L1E3 -o r",
    "import vllm {} -o r --model MOE",
)  # fmt: skip
RUNS = (
    "table {}", "report {}", "profile {} L0E1", "compare {} RUN", "compare RUN {}",
    "merge {} RUN -o r", "similarity {} -o r", "ablate --run {} --experts L1E3",
    "steer --run {} --prompt plan --set L1E3=+2", "contrast --run {} --with TEXTS --without TEXTS",
)  # fmt: skip
FILES = (
    f"{TRACE} --config {{}}", "ablate MOE --config {}", "train {} -o r",
    "steer MOE --prompt plan --plan {}", "ablate MOE --corpus TEXTS -o r --plan {}",
)  # fmt: skip


def _pipe(here: Path) -> None:
    os.mkfifo(here / "pipe")


def _dangling(here: Path) -> None:
    (here / "link").symlink_to("gone")


def _loop(here: Path) -> None:
    (here / "loop").symlink_to("loop")


def _folder(here: Path) -> None:
    (here / "folder").mkdir()


def _binary(here: Path) -> None:
    (here / "binary").write_bytes(bytes(range(256)) * 4)


def _empty(here: Path) -> None:
    (here / "empty").write_bytes(b"")


def _wrong(commands, name, word, *says, prepare=lambda _: None):  # type: ignore[no-untyped-def]
    """The same path in the place of ``{}`` of several commands."""
    return [case(name, c.replace("{}", word), *says, prepare=prepare) for c in commands]


CASES = [
    *_wrong(MODELS, "a file for a model", "TEXTS", "texts.jsonl"),
    *_wrong(MODELS, "a device for a model", "/dev/null", "/dev/null"),
    *_wrong(MODELS, "a name too long for a model", LONG, "nnn"),
    *_wrong(MODELS, "a dangling link for a model", "./link", "link", prepare=_dangling),
    *_wrong(MODELS, "an empty name for a model", "''", "model"),
    *_wrong(MODELS, "an empty folder for a model", "folder", "config.json", prepare=_folder),
    *_wrong(CORPORA, "nothing for a corpus", "./nowhere.jsonl", "nowhere.jsonl"),
    *_wrong(CORPORA, "a name too long for a corpus", LONG, "nnn"),
    *_wrong(CORPORA, "an empty name for a corpus", "''"),
    *_wrong(CORPORA, "a device for a corpus", "/dev/null", "/dev/null"),
    *_wrong(CORPORA, "an endless device for a corpus", "/dev/zero", "/dev/zero"),
    *_wrong(CORPORA, "a pipe for a corpus", "pipe", "pipe", prepare=_pipe),
    *_wrong(CORPORA, "a dangling link for a corpus", "link", "link", prepare=_dangling),
    *_wrong(CORPORA, "an empty folder for a corpus", "folder", "folder", prepare=_folder),
    *_wrong(RUNS, "a file for a run", "TEXTS", "texts.jsonl"),
    *_wrong(RUNS, "a model for a run", "./folder", "folder", prepare=_folder),
    *_wrong(RUNS, "a device for a run", "/dev/null", "/dev/null"),
    *_wrong(RUNS, "a name too long for a run", LONG, "nnn"),
    *_wrong(RUNS, "a link in a circle for a run", "./loop", "loop", prepare=_loop),
    *_wrong(RUNS, "an empty name for a run", "''"),
    *_wrong(FILES, "no file", "nowhere.yaml", "nowhere.yaml"),
    *_wrong(FILES, "a folder for a file", "folder", "folder", prepare=_folder),
    *_wrong(FILES, "a device for a file", "/dev/zero", "/dev/zero"),
    *_wrong(FILES, "a pipe for a file", "pipe", "pipe", prepare=_pipe),
    *_wrong(FILES, "a name too long for a file", LONG, "nnn"),
    *_wrong(FILES, "bytes for a file", "binary", "binary", prepare=_binary),
    *_wrong(FILES, "an empty file", "empty", "empty", prepare=_empty),
    *each(("table RUN/manifest.json", "report RUN/manifest.json"), "a file below a run", "", "run"),
    case("a run twice", "merge RUN RUN -o r", "run"),
    case("one run alone", "compare RUN", "RUN"),
    case("no runs", "merge -o r", "RUN"),
    case("no model at all", "inspect", "MODEL"),
]
