"""A verb that is killed in the middle goes on with --resume, and ends as if it had not been."""

from pathlib import Path

import pytest
from tests.support.killed import run_and_kill
from tests.support.saved import save_tiny, write_corpus

WORDS = {
    "similarity": "similarity moe texts.jsonl -o {} --total-tokens 200 --output-memory 1MB",
    "contrast": "contrast moe --with texts.jsonl --without other.jsonl -o {}",
    "steer": "steer moe --prompt 'the plan covers' --set L1E2=+2 --sweep -2:2:1 --generate 2 "
    "--controls 0 -o {}",
    "ablate": "ablate moe --each --layers 1 --corpus texts.jsonl -o {}",
}
PIECES = {"similarity": 3, "contrast": 2, "steer": 3, "ablate": 4}
"""Lines of the journal that go well, the first of which says what is measured."""

RUN = """
import shlex, sys
sys.argv = ["moescope", *shlex.split({words!r})]
from moescope.cli.main import run
run()
"""


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("killed")
    save_tiny("olmoe", folder / "moe")
    write_corpus(folder / "texts.jsonl", documents_per_domain=4)
    write_corpus(folder / "other.jsonl", documents_per_domain=4, seed=1)
    return folder


def results(folder: Path) -> dict[str, bytes]:
    """What was found, without what took how long."""
    return {
        path.name: path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
        and path.name not in ("moescope.sha256", "measured.jsonl", "config.yaml")
        and not (folder.name.startswith("ablate") and path.suffix in (".html", ".json"))
    }


@pytest.mark.parametrize("verb", WORDS)
def test_it_ends_as_if_it_had_not_been_killed(
    verb: str, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(place)
    words = WORDS[verb].format
    run_and_kill(RUN.format(words=words(f"{verb}-whole")))
    target = "moescope.measure.journal:Journal._write"
    assert run_and_kill(RUN.format(words=words(f"{verb}-cut")), target, PIECES[verb])
    cut = place / f"{verb}-cut"
    assert len((cut / "measured.jsonl").read_bytes().splitlines()) == PIECES[verb]
    assert not (cut / "result.json").exists()
    run_and_kill(RUN.format(words=words(f"{verb}-cut") + " --resume"))
    whole = results(place / f"{verb}-whole")
    assert whole.keys() >= {"result.json"} or verb == "ablate"
    own = f"{verb}-cut".encode(), f"{verb}-whole".encode()  # pages name their folder
    assert {n: b.replace(*own) for n, b in results(cut).items()} == whole
