"""Runs what README, the tutorial and the how-tos show, as a reader would who typed it all.

A program for an environment that has moescope and what moescope requires, no tests' tools::

    python snippets.py FOLDER             # fill it with what pages take for granted
    python snippets.py FOLDER PAGE        # run a page in it
    python snippets.py FOLDER PAGE python # only the blocks of this language

That is a model under the names of models, texts, a run. Blocks of ``python`` and ``console`` run in
the order of the page. Sizes are made small (`GIVEN`, `SMALL`). A block that cannot run says why,
in a line above it::

    <!-- not run: needs vLLM and its GPU -->
"""

from __future__ import annotations

import contextlib
import doctest
import io
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from textwrap import dedent
from typing import Any, NamedTuple

GIVEN = {
    "demo": {"--limit": 400},
    "profile": {"--tokens": 100},
    "ablate": {"--tokens": 60, "--window": 32, "--controls": 3},
    "similarity": {"--total-tokens": 300},
    "steer": {"--generate": 3},
    "train": {"--set": "train.steps=6"},
}
"""Verb → flags that it is given where it has them not."""

SMALL = {"--limit": 300, "--tokens": 100, "--controls": 3, "--generate": 3}
"""Flags that are given with a smaller number than the page has."""

MODELS = (
    "MODEL",
    "owner/model",
    "allenai/OLMoE-1B-7B-0924",
    "mistralai/Mixtral-8x7B-v0.1",
)
"""Names that a page may give a model; all are one small model."""

_FENCE = re.compile(
    r"^(?:[ ]*<!-- not run: (?P<why>[^\n]+?) -->\n+)?"
    r"^[ ]*```(?P<language>\w+) ?(?P<about>[^\n]*)\n(?P<text>.*?)^[ ]*```$",
    re.DOTALL | re.MULTILINE,
)
_SHELL = re.compile(r" [|<>] |\$['\"A-Z]|/\*|^[A-Z_]+=")
GIVEN_RUN = "a-run"
MADE = ["source", ".venv/bin/activate"]
_MAKES_IT = re.compile(r"-o my-run|\banalyze\(")


class Block(NamedTuple):
    """A fenced block: its language, what stands behind it, why it is not run, and its text."""

    language: str
    about: str
    why: str | None
    text: str


def blocks_of(page: Path) -> list[Block]:
    """The fenced blocks of a page, in order."""
    found = _FENCE.finditer(page.read_text(encoding="utf-8"))
    return [Block(m["language"], m["about"], m["why"], dedent(m["text"])) for m in found]


def commands_of(block: Block) -> Iterator[str]:
    """The commands of a console block; lines without ``$`` are what they print."""
    text = block.text.replace("\\\n", " ")
    for line in text.splitlines():
        if line.startswith("$ "):
            yield line[2:].strip()


def run_page(page: Path, names: dict[str, Any], languages: set[str]) -> int:
    """Run the blocks of a page here; how many ran."""
    ran = 0
    for block in blocks_of(page):
        if block.about.startswith("title="):
            Path(block.about.removeprefix("title=")).write_text(block.text, encoding="utf-8")
        if block.why is not None or block.language not in languages:
            continue
        ran += 1
        try:
            if block.language == "console":
                for command in commands_of(block):
                    _command(command)
            elif ">>>" in block.text:
                _session(block.text, names, page)
            else:
                exec(compile(block.text, str(page), "exec"), names)
        except BaseException as error:
            raise SystemExit(
                f"{page.name}: {error!r} in a block that begins\n{block.text[:200]}"
            ) from error
    return ran


def _session(text: str, names: dict[str, Any], page: Path) -> None:
    test = doctest.DocTestParser().get_doctest(text, {}, page.name, str(page), 0)
    test.globs = names
    said: list[str] = []
    if doctest.DocTestRunner().run(test, out=said.append, clear_globs=False).failed:
        raise AssertionError("".join(said))


def _command(line: str) -> None:
    """A line of the shell; those of moescope alone in this process, which saves its start."""
    from moescope.cli.main import app

    words = shlex.split(line, comments=True)
    if words == ["pip", "install", "-e", "."] or words[:2] in (["make", "test"], MADE):
        return  # what made the environment
    if words == ["make", "demo"]:
        words = ["moescope", "demo", "-o", "demo-run"]
    print("$", line, flush=True)
    if words[0] != "moescope" or _SHELL.search(line.partition(" #")[0]):
        run = re.sub(r"\bmoescope(?= )", f"{shlex.quote(sys.executable)} -m moescope", line)
        subprocess.run(["bash", "-c", run], check=True)
        return
    with contextlib.redirect_stdout(io.StringIO()):
        app(_small(words)[1:], standalone_mode=False)


def _small(words: list[str]) -> list[str]:
    made = list(words)
    for flag, most in SMALL.items():
        if flag in made and int(made[(at := made.index(flag)) + 1]) > most:
            made[at + 1] = str(most)
    given = {} if "--no-model" in words else GIVEN.get(words[1], {})
    for flag, value in given.items():
        if flag == "--set" or flag not in made:
            made += [flag, str(value)]
    return made


def fill(folder: Path) -> None:
    """What the pages take for granted: models, texts, a run."""
    from moescope import CorpusSpec, TraceOptions, analyze, load_model, open_corpus
    from moescope.axes import ExpertRef
    from moescope.demo import MODEL, SAMPLES
    from moescope.measure.identity import describe_model
    from moescope.plan import Plan, PlanEntry

    for name in MODELS:
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).symlink_to(_model(folder / "small-moe"))
    (folder / "src" / "moescope").mkdir(parents=True)
    (folder / "src" / "moescope" / "demo").symlink_to(MODEL.parent)
    texts = {
        path.stem: [" ".join(d.text.split())[:200] for d in open_corpus(CorpusSpec(path=str(path)))]
        for path in sorted(SAMPLES.glob("*.jsonl"))
    }
    (folder / "texts").mkdir()
    for name, domain in {"law": "legal", "policy": "speeches", "everyday": "literature"}.items():
        (folder / "texts" / f"{name}.txt").write_text("\n\n".join(texts[domain][:8]))
    for name, domain in {"formal": "german", "casual": "english_apache"}.items():
        (folder / f"{name}.txt").write_text("\n".join(texts[domain][:40]))
    said = [("question", texts["legal"][n], texts["speeches"][n]) for n in range(6)]
    questions = [{"id": f"q{n}", "domain": d, "text": t} for n, (d, t, _) in enumerate(said)]
    chats = [
        {"key": f"c{n}", "topic": d, "body": t, "domain": d, "messages": [
            {"role": "user", "content": t}, {"role": "assistant", "content": answer}]}
        for n, (d, t, answer) in enumerate(said)
    ]  # fmt: skip
    for name, rows in {"questions": questions, "texts": questions, "chats": chats}.items():
        lines = [json.dumps(row) + "\n" for row in rows]
        (folder / f"{name}.jsonl").write_text("".join(lines), encoding="utf-8")
    with contextlib.chdir(folder):
        loaded = load_model("MODEL")
        analyze(loaded, "texts/", GIVEN_RUN, TraceOptions(keep="all", context=64))
        entry = PlanEntry(ExpertRef(1, 9), "by hand", 1.0)
        Plan.of(describe_model(loaded), [entry], "by hand").write(folder / "plan.json")


def _model(folder: Path) -> Path:
    """The shipped model with nine layers, the last three of which are there twice, and a chat."""
    if folder.exists():
        return folder
    from safetensors.torch import load_file, save_file

    from moescope.demo import MODEL

    shutil.copytree(MODEL, folder)
    weights = load_file(folder / "model.safetensors")
    again = {re.sub(r"layers\.([345])\.", lambda m: f"layers.{int(m[1]) + 3}.", k): v.clone()
             for k, v in weights.items()}  # fmt: skip
    save_file({**again, **weights}, folder / "model.safetensors", metadata={"format": "pt"})
    template = (
        "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
        "{% if add_generation_prompt %}assistant: {% endif %}"
    )
    changes: dict[str, dict[str, Any]] = {
        "config.json": {"num_hidden_layers": 9, "max_position_embeddings": 4096},
        "tokenizer_config.json": {"chat_template": template},
    }
    for name, change in changes.items():
        file = folder / name
        file.write_text(json.dumps({**json.loads(file.read_text("utf-8")), **change}))
    return folder


def main() -> None:
    """Fill a folder, or run a page in one."""
    folder, *rest = sys.argv[1:]
    pages, languages = [Path(word).resolve() for word in rest[:1]], set(rest[1:])
    os.chdir(folder)
    if not pages:
        fill(Path.cwd())
        return
    sys.path.insert(0, folder)
    [page] = pages
    if "my-run" in page.read_text("utf-8") and not _MAKES_IT.search(page.read_text("utf-8")):
        shutil.copytree(GIVEN_RUN, "my-run")
    print(
        f"{run_page(page, {'__name__': page.stem}, languages or {'python', 'console'})} blocks ran"
    )


if __name__ == "__main__":
    main()
