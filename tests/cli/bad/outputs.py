"""What ``-o`` must not be: somebody's folder or file, no folder at all, or part of what is read."""

from pathlib import Path

from tests.cli.bad import Case, case, each

FOLDERS = [
    "analyze MOE TEXTS",
    "trace MOE TEXTS",
    "trace MOE TEXTS --launcher local --workers 1",
    "trace MOE TEXTS --shard 1/2",
    "trace MOE TEXTS --engine streamed",
    "trace MOE TEXTS --resume",
    "demo",
    "demo --step 44",
    "import vllm caught.jsonl --model MOE",
    "merge RUN OTHERRUN",
    "train RECIPE",
    "train RECIPE --resume",
    "ablate MOE --experts L1E3 --corpus TEXTS",
    "ablate MOE --each --corpus TEXTS --resume",
    "similarity MOE TEXTS",
    "steer MOE --prompt hello --set L1E3=+2.0",
    "contrast MOE --with TEXTS --without OTHERTEXTS",
    "contrast MOE --with TEXTS --without OTHERTEXTS --resume",
]
"""Commands that write a folder."""

FIGURES = ["report RUN"]
"""Commands that write a folder of figures besides."""

FILES = ["report RUN", "select RUN --domain domain0 --budget 20%"]
"""Commands that write a file."""

PLANTED = (
    "documents/thesis.txt", "documents/00000.parquet", "shards/a.parquet", "aggregates/sums.csv",
    "streaming/film.mp4", "checkpoint/weights.bin", "checkpoint.old/weights.bin",
    "checkpoints/step-000001/model.bin", "model/config.json", "model/mine.txt", "log/steps.parquet",
    "tokens/index.json", "tokenizer/tokenizer.json", "tables/load.parquet", "parts/launch.json",
    "parts/1-of-2/manifest.json", "profiles/L0E0.json", "figures/map.pdf", "recipe.yaml",
    "config.yaml", "manifest.json", "documents.parquet", "sample.parquet", "vocabulary.json",
    "report.html", "training.html", "ablation.json", "ablation.html", "measured.jsonl",
    "damage.parquet", "similarity.json", "similarity.html", "pairs.parquet", "maps.parquet",
    "steering.json", "steering.html", "result.json", "contrast.html", "measured/with-0.parquet",
    "manifest.json.partial", ".moescope.lock.mine", "plan.json",
)  # fmt: skip
"""A user's files of the very names that moescope writes."""


def plant(here: Path) -> None:
    """A user's folder, with links to a folder outside of it, and links to both."""
    outside = here / "outside"
    for name in PLANTED:
        for root in (here / "mine", outside):
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            (root / name).write_text(f"years of work on {name}")
    for name in ("documents", "shards", "streaming", "parts"):
        (here / "linked").mkdir(exist_ok=True)
        (here / "linked" / name).symlink_to(outside / name)
    (here / "link").symlink_to(here / "mine")
    _captures(here)


def _captures(here: Path) -> None:
    (here / "caught.jsonl").write_text("{}\n")


def _odd(here: Path) -> None:
    (here / "file").write_text("mine")
    (here / "nowhere").symlink_to(here / "gone")
    (here / "to-file").symlink_to(here / "file")
    _captures(here)


def _other_kind(here: Path) -> None:
    (here / "figures").mkdir()
    (here / "figures" / "moescope.sha256").write_text("# moescope result: quilt\n")
    _captures(here)


def _damaged(here: Path) -> None:
    for name, text in {
        "head": "# something else\n",
        "escape": "# moescope result: run\n" + "0" * 64 + "  ../outside.txt\n",
        "absolute": "# moescope result: run\n" + "0" * 64 + "  /etc/passwd\n",
        "owns": "# moescope result: run\n#  notes/\n",
        "binary": "\xff\xfe",
    }.items():
        (here / name).mkdir()
        (here / name / "moescope.sha256").write_bytes(text.encode("latin-1"))
    (here / "outside.txt").write_text("mine")
    _captures(here)


_MINE = "moescope did not write"

CASES: list[Case] = [
    *each(FOLDERS, "a user's folder", "-o mine", _MINE, prepare=plant),
    *each(FOLDERS, "a link to a user's folder", "-o link", _MINE, prepare=plant),
    *each(FOLDERS, "a folder of links", "-o linked", _MINE, prepare=plant),
    *each(FOLDERS, "the current folder", "-o .", _MINE, prepare=plant),
    *each(FOLDERS, "an empty path", "-o ''", "is empty", prepare=plant),
    *each(FOLDERS, "blanks", "-o '  '", "is empty", prepare=plant),
    *each(FOLDERS[::4], "a file", "-o file", "is a file", prepare=_odd),
    *each(FOLDERS[1::4], "a link to a file", "-o to-file", "is a file", prepare=_odd),
    *each(FOLDERS[2::4], "a link to nowhere", "-o nowhere", "leads nowhere", prepare=_odd),
    *each(FOLDERS[3::4], "below a file", "-o file/run", "is a file", prepare=_odd),
    *each(FOLDERS[::4], "a device", "-o /dev/null", "is a file", prepare=_odd),
    *each(FOLDERS[1::4], "a long name", f"-o {'x' * 300}", "name too long", prepare=_odd),
    *each(FOLDERS[2::4], "a long path", f"-o {'/'.join('x' * 200 for _ in range(30))}",
          "name too long", prepare=_odd),
    *each(FOLDERS[::3], "a name of a file", "-o plan.json", "is called like a file", prepare=_odd),
    *each(FOLDERS, "a result of another kind", "-o figures", "quilt", prepare=_other_kind),
    *each(FOLDERS[::3], "a ledger of something else", "-o head", "damaged", prepare=_damaged),
    *each(FOLDERS[1::3], "a ledger that names what lies outside", "-o escape", "damaged",
          prepare=_damaged),
    *each(FOLDERS[2::3], "a ledger that names a system's file", "-o absolute", "damaged",
          prepare=_damaged),
    *each(FOLDERS[::5], "a ledger that is not text", "-o binary", "damaged", prepare=_damaged),
    *each(FOLDERS[1::5], "a ledger that owns a whole folder", "-o owns", "damaged",
          prepare=_damaged),
    *each(FIGURES, "a user's folder of figures", "--figures mine", _MINE, prepare=plant),
    *each(FIGURES, "no folder of figures", "--figures ''", "is empty", prepare=plant),
    *each(FIGURES, "a file for figures", "--figures file", "is a file", prepare=_odd),
    *each(FILES, "a user's file", "-o mine/plan.json", "is there already", prepare=plant),
    *each(FILES, "a link to a user's file", "-o to-file", "is there already", prepare=_odd),
    *each(FILES, "an empty path of a file", "-o ''", "is empty", prepare=plant),
    *each(FILES, "a folder for a file", "-o mine", "is there already", prepare=plant),
    *each(FILES, "a device for a file", "-o /dev/null", "is there already"),
    *each(FILES, "a file below a file", "-o file/plan.json", "is a file", prepare=_odd),
    *each(FILES, "a file beside somebody's draft", "-o mine/manifest.json", "in the way",
          prepare=plant),
]  # fmt: skip


def _texts_here(here: Path) -> None:
    (here / "texts").mkdir()
    for domain in ("law", "care"):
        text = "\n".join(f'{{"text": "the plan {i} pays for the chair"}}' for i in range(9))
        (here / "texts" / f"{domain}.jsonl").write_text(text)


CASES += [
    case(f"{verb} into what is read", f"{verb} MOE texts -o texts/out", "lies inside texts",
         prepare=_texts_here)
    for verb in ("analyze", "trace", "trace --launcher local --workers 1", "similarity")
] + [
    case("into what is read", "ablate MOE --experts L1E3 --corpus texts -o texts/out",
         "lies inside texts", prepare=_texts_here),
    case("into what is read", "train RECIPE --set data.train.path=texts -o texts/out",
         "texts/out lies inside", prepare=_texts_here),
    case("the corpus itself", "trace MOE texts -o texts", "lies inside texts",
         prepare=_texts_here),
]  # fmt: skip
