"""The folders that moescope writes to: whose they are, who holds them, and what is ever removed."""

import hashlib
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from moescope import files
from moescope.errors import BadInputError, BusyError, RunError, WriteError
from moescope.files import (
    LEDGER,
    LOCK,
    claim,
    is_intact,
    own,
    remove,
    replacing_folder,
    write_bytes,
)


def everything(folder: Path) -> dict[str, bytes | str]:
    """Every path below a folder with its content, or where it points."""
    found: dict[str, bytes | str] = {}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if path.is_symlink():
            found[name] = str(path.readlink())
        elif path.is_file():
            found[name] = path.read_bytes()
        else:
            found[name] = "folder"
    return found


def ledger(folder: Path) -> list[str]:
    return (folder / LEDGER).read_text(encoding="utf-8").splitlines()


class TestClaim:
    def test_a_new_folder_an_empty_one_and_one_of_the_same_kind_are_taken(
        self, tmp_path: Path
    ) -> None:
        (tmp_path / "empty").mkdir()
        for name in ("new/deep", "empty", "new/deep"):
            with claim(tmp_path / name, "run") as folder:
                write_bytes(folder / "a.txt", b"ours")
            assert everything(tmp_path / name).keys() == {LEDGER, "a.txt"}

    def test_nothing_is_left_by_a_claim_that_writes_nothing(self, tmp_path: Path) -> None:
        with claim(tmp_path / "new" / "deep", "run") as folder:
            assert (folder / LOCK).is_file()
        assert everything(tmp_path) == {}

    def test_nothing_is_left_by_what_was_begun_and_given_up(self, tmp_path: Path) -> None:
        def given_up() -> None:
            with claim(tmp_path / "new", "run") as folder, replacing_folder(folder / "part") as new:
                (new / "a.txt").write_text("half")
                raise RunError("not so")

        with pytest.raises(RunError, match="not so"):
            given_up()
        assert everything(tmp_path) == {}

    def test_what_somebody_else_put_there_is_refused_untouched(self, tmp_path: Path) -> None:
        (tmp_path / "documents").mkdir()
        (tmp_path / "documents" / "thesis.txt").write_text("years of work")
        before = everything(tmp_path)
        with pytest.raises(RunError, match=r"moescope did not write \(documents\)"):
            claim(tmp_path, "run").__enter__()
        assert everything(tmp_path) == before

    def test_a_result_of_another_kind_is_refused(self, tmp_path: Path) -> None:
        with claim(tmp_path, "run") as folder:
            write_bytes(folder / "a.txt", b"")
        with pytest.raises(RunError, match=r"another kind \(run, not training\)"):
            claim(tmp_path, "training").__enter__()
        with claim(tmp_path, "run"), pytest.raises(RunError, match="another kind"):
            claim(tmp_path, "training").__enter__()

    def test_a_process_that_died_before_it_wrote_leaves_the_folder_free(
        self, tmp_path: Path
    ) -> None:
        (tmp_path / f"{LEDGER}.partial").write_text("# moescope res")
        (tmp_path / LOCK).write_text('{"pid": 1, "host": "gone"}')
        with claim(tmp_path, "run") as folder:
            write_bytes(folder / "a.txt", b"")
        assert ledger(tmp_path)[0] == "# moescope result: run"

    @pytest.mark.parametrize(
        ("path", "said"),
        [
            ("", "is empty"),
            ("file", "is a file"),
            ("file/below", "because .*file is a file"),
            ("dangling", "leads nowhere"),
            ("x" * 300, "File name too long"),
            ("nul\0", "null character"),
            ("surrogate\udc80", "not UTF-8"),
        ],
    )
    def test_a_path_that_can_be_no_folder_is_one_line(
        self, path: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.chdir(tmp_path)
        (tmp_path / "file").write_text("mine")
        (tmp_path / "dangling").symlink_to("gone")
        before = everything(tmp_path)
        with pytest.raises((BadInputError, RunError), match=said) as caught:
            claim(path, "run").__enter__()
        assert "\n" not in str(caught.value)
        assert everything(tmp_path) == before

    def test_results_do_not_go_into_what_is_read(self, tmp_path: Path) -> None:
        (tmp_path / "texts").mkdir()
        (tmp_path / "link").symlink_to(tmp_path / "texts")
        for out in ("texts", "texts/out", "link/out", "texts/../texts/out"):
            with pytest.raises(BadInputError, match="lies inside"):
                claim(tmp_path / out, "run", reads=[tmp_path / "texts"]).__enter__()
        assert everything(tmp_path / "texts") == {}


class TestTwoWriters:
    def test_the_second_says_who_holds_it(self, tmp_path: Path) -> None:
        code = (
            "import sys, time\nfrom moescope.files import claim\n"
            f"with claim({str(tmp_path / 'run')!r}, 'run'):\n"
            "    print('held', flush=True)\n    sys.stdin.readline()\n"
        )
        other = subprocess.Popen(
            [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        assert other.stdout is not None
        assert other.stdout.readline() == "held\n"
        with pytest.raises(BusyError, match=f"being written by process {other.pid} on "):
            claim(tmp_path / "run", "run", wait=0.0).__enter__()
        other.kill()
        other.wait()
        with claim(tmp_path / "run", "run"):  # a lock dies with its holder
            pass

    def test_only_one_at_a_time_though_each_removes_the_lock(self, tmp_path: Path) -> None:
        inside: list[int] = []
        most, entered = 0, 0

        def enter() -> None:
            nonlocal most, entered
            for _ in range(20):
                with claim(tmp_path / "deep" / "er", "run", wait=60):
                    inside.append(1)
                    most, entered = max(most, len(inside)), entered + 1
                    time.sleep(0.0005)
                    inside.pop()

        threads = [threading.Thread(target=enter) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert (most, entered) == (1, 80)
        assert not [path for path in tmp_path.rglob("*") if path.is_file()]


class TestWriting:
    def test_the_ledger_is_what_sha256sum_takes(self, tmp_path: Path) -> None:
        with claim(tmp_path / "run", "run") as folder:
            write_bytes(folder / "deep" / "a.txt", b"one")
            write_bytes(folder / "deep" / "a.txt", b"two")
            own(folder / "log.txt").write_text("grows")
        digest = hashlib.sha256(b"two").hexdigest()
        assert ledger(tmp_path / "run") == [
            "# moescope result: run", f"{digest}  deep/a.txt", "#  log.txt",
        ]  # fmt: skip
        done = subprocess.run(
            ["sha256sum", "--quiet", "-c", LEDGER], cwd=tmp_path / "run", check=False
        )
        assert done.returncode == 0

    def test_an_altered_file_is_known(self, tmp_path: Path) -> None:
        with claim(tmp_path, "run") as folder:
            write_bytes(folder / "a.txt", b"0123456789")
        assert is_intact(tmp_path, "a.txt") is True
        (tmp_path / "a.txt").write_bytes(b"0123456788")
        assert is_intact(tmp_path, "a.txt") is False
        assert is_intact(tmp_path, "b.txt") is None

    @pytest.mark.parametrize("again", [False, True])
    @pytest.mark.parametrize("how", [KeyboardInterrupt, SystemExit, OSError(28, "full")])
    def test_an_end_between_note_and_rename_is_no_alteration(
        self, how: BaseException, again: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        with claim(tmp_path, "run") as folder:
            write_bytes(folder / "a.txt", b"old")
        replace = Path.replace

        def ends(path: Path, target: Path) -> Path:
            if path.name == "a.txt.partial":
                raise how
            return replace(path, target)

        for content in (b"new", b"newer") if again else (b"new",):
            with monkeypatch.context() as patch:
                patch.setattr(Path, "replace", ends)
                with pytest.raises((KeyboardInterrupt, SystemExit, WriteError)):
                    self.rewrite(tmp_path, content)
        with claim(tmp_path, "run") as folder:
            write_bytes(folder / "b.txt", b"")  # another claim that writes and ends well
        assert (tmp_path / "a.txt").read_bytes() == b"old"
        assert is_intact(tmp_path, "a.txt") is True
        self.rewrite(tmp_path, b"newest")
        assert is_intact(tmp_path, "a.txt") is True
        assert sum("a.txt" in line for line in ledger(tmp_path)) == 1

    def rewrite(self, folder: Path, content: bytes) -> None:
        with claim(folder, "run") as place:
            write_bytes(place / "a.txt", content)

    def test_the_ledger_is_not_written_through_a_link(self, tmp_path: Path) -> None:
        (tmp_path / "victim").write_text("mine")
        self.rewrite(tmp_path / "run", b"1")
        (tmp_path / "run" / "moescope.sha256.partial").symlink_to(tmp_path / "victim")
        self.rewrite(tmp_path / "run", b"2")
        assert (tmp_path / "victim").read_text() == "mine"
        assert everything(tmp_path / "run").keys() == {LEDGER, "a.txt"}

    def test_a_full_disk_at_the_first_line_does_not_lock_the_folder(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def full(*_: object) -> None:
            raise OSError(28, "No space left on device")

        with monkeypatch.context() as patch:
            patch.setattr(os, "fsync", full)
            with pytest.raises(WriteError, match="the disk is full"):
                self.rewrite(tmp_path / "run", b"1")
        assert not (tmp_path / "run").exists()
        (tmp_path / "run").mkdir()
        (tmp_path / "run" / "moescope.sha256.partial").write_text("# moes")  # killed there
        self.rewrite(tmp_path / "run", b"1")
        assert everything(tmp_path / "run").keys() == {LEDGER, "a.txt"}

    def test_half_a_line_is_not_written_on(self, tmp_path: Path) -> None:
        with claim(tmp_path, "run") as folder:
            write_bytes(folder / "a.txt", b"1")
            (folder / LEDGER).open("a").write("#  b.t")
            files.claims.HELD[tmp_path.resolve()].ledger.torn = True
            write_bytes(folder / "c.txt", b"2")
        assert is_intact(tmp_path, "c.txt") is True

    def test_a_folder_that_cannot_be_is_not_waited_for(self) -> None:
        with pytest.raises(WriteError, match="cannot write /proc/x/y"):
            claim("/proc/x/y", "run").__enter__()

    def test_somebody_elses_file_in_a_result_is_never_replaced_nor_removed(
        self, tmp_path: Path
    ) -> None:
        with claim(tmp_path, "run") as folder:
            write_bytes(folder / "a.txt", b"ours")
            (folder / "theirs.txt").write_text("notes")
            for name in ("a.txt.partial", "b.txt.partial"):
                (folder / name).write_text("a draft")
            for name in ("theirs.txt", "a.txt", "b.txt"):
                with pytest.raises(RunError, match="not written by moescope"):
                    write_bytes(folder / name, b"ours")
            assert files.owned(folder) == ["a.txt"]  # a write that was refused notes nothing
            remove(folder / "theirs.txt")
            remove(folder / "a.txt")
        kept = {LEDGER, "theirs.txt", "a.txt.partial", "b.txt.partial"}
        assert everything(tmp_path).keys() == kept

    def test_a_name_that_came_to_nothing_is_not_ours(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def full(*_: object) -> None:
            raise OSError(28, "No space left on device")

        self.rewrite(tmp_path, b"1")
        with claim(tmp_path, "run") as folder, monkeypatch.context() as patch:
            patch.setattr(files.writing, "sha256_of", full)
            with pytest.raises(WriteError):
                write_bytes(folder / "page.html", b"ours")
        (tmp_path / "page.html").write_text("mine")
        with claim(tmp_path, "run") as folder, pytest.raises(RunError, match="not written by"):
            write_bytes(folder / "page.html", b"ours")
        assert (tmp_path / "page.html").read_text() == "mine"

    def test_a_folder_that_was_swapped_is_left_alone(self, tmp_path: Path) -> None:
        (tmp_path / "mine").mkdir()
        with claim(tmp_path / "run", "run") as folder:
            write_bytes(folder / "a.txt", b"1")
            folder.rename(tmp_path / "moved")
            folder.symlink_to(tmp_path / "mine")
            with pytest.raises(RunError, match="was moved or replaced"):
                write_bytes(folder / "b.txt", b"2")
        assert everything(tmp_path / "mine") == {}

    @pytest.mark.parametrize("linked", [False, True])
    def test_a_users_file_of_the_locks_name_stops_that(self, linked: bool, tmp_path: Path) -> None:
        (tmp_path / "run").mkdir()
        (tmp_path / "thesis.txt").write_text("years of work")
        if linked:
            (tmp_path / "run" / LOCK).hardlink_to(tmp_path / "thesis.txt")
        else:
            (tmp_path / "run" / LOCK).write_text("years of work")
        with pytest.raises(RunError, match="was not written by moescope"):
            claim(tmp_path / "run", "run").__enter__()
        assert (tmp_path / "thesis.txt").read_text() == "years of work"
        assert (tmp_path / "run" / LOCK).read_text() == "years of work"

    def test_a_lock_in_a_linked_copy_stays_there(self, tmp_path: Path) -> None:
        for name in ("run", "copy"):
            (tmp_path / name).mkdir()
        (tmp_path / "run" / LOCK).write_text('{"pid": 1, "host": "gone"}')
        (tmp_path / "copy" / LOCK).hardlink_to(tmp_path / "run" / LOCK)
        self.rewrite(tmp_path / "run", b"1")
        assert (tmp_path / "copy" / LOCK).read_text() == '{"pid": 1, "host": "gone"}'

    @pytest.mark.parametrize("content", ["", "abc  my-own-sums", "# moescope res"])
    def test_a_users_file_of_the_ledgers_name_stops_that(
        self, content: str, tmp_path: Path
    ) -> None:
        (tmp_path / LEDGER).write_text(content)
        with pytest.raises(RunError, match="is damaged"):
            self.rewrite(tmp_path, b"1")
        assert (tmp_path / LEDGER).read_text() == content

    @pytest.mark.parametrize("name", ["tables/load.parquet", "tables"])
    def test_nothing_is_written_or_removed_through_a_link(self, name: str, tmp_path: Path) -> None:
        (tmp_path / "victim").mkdir()
        (tmp_path / "victim" / "load.parquet").write_text("mine")
        with claim(tmp_path / "run", "run") as folder:
            write_bytes(folder / "tables" / "load.parquet", b"ours")
            remove(folder / "tables" / "load.parquet")
            own(folder / "tables" / "load.parquet")
            (folder / "tables").symlink_to(tmp_path / "victim")
            with pytest.raises(RunError, match="is a link"):
                write_bytes(folder / "tables" / "load.parquet", b"ours")
            with pytest.raises(RunError, match="is a link"):
                remove(folder / "tables" / "load.parquet")
            with pytest.raises(RunError, match=r"is a link|not written"):
                replacing_folder(folder / name).__enter__()
        assert (tmp_path / "victim" / "load.parquet").read_text() == "mine"

    def test_a_planted_link_of_a_temporary_name_is_not_followed(self, tmp_path: Path) -> None:
        (tmp_path / "victim").write_text("mine")
        self.rewrite(tmp_path / "run", b"one")
        (tmp_path / "run" / "a.txt.partial").symlink_to(tmp_path / "victim")
        with pytest.raises(RunError, match="is a link"):
            self.rewrite(tmp_path / "run", b"two")
        assert (tmp_path / "victim").read_text() == "mine"
        assert (tmp_path / "run" / "a.txt").read_bytes() == b"one"

    def test_a_full_disk_is_one_line_and_the_old_file_stays(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def full(*_: object) -> None:
            raise OSError(28, "No space left on device")

        with claim(tmp_path, "run") as folder:
            write_bytes(folder / "a.txt", b"old")
            with monkeypatch.context() as patch:
                patch.setattr(os, "fsync", full)
                with pytest.raises(WriteError, match="the disk is full; what was finished") as it:
                    write_bytes(folder / "a.txt", b"new")
        assert "--" not in str(it.value)  # flags are the command line's to name
        assert everything(tmp_path).keys() == {LEDGER, "a.txt"}
        assert (tmp_path / "a.txt").read_bytes() == b"old"

    def test_a_library_that_meets_a_full_disk_in_its_own_way_is_understood(
        self, tmp_path: Path
    ) -> None:
        error = RuntimeError("I/O error: No space left on device (os error 28)")
        with (
            claim(tmp_path, "run") as folder,
            pytest.raises(WriteError, match="the disk is full"),
            files.replacing(folder / "a.txt"),
        ):
            raise error


class TestBadInput:
    """What was written goes again when the work ends in bad input."""

    def work(self, folder: Path, error: Exception, kept: bool = False) -> None:
        with files.nothing_of_bad_input(folder, unless=lambda: kept):
            write_bytes(folder / "deep" / "a.txt", b"2")
            files.keep_scratch(folder / "streaming").mkdir()
            (folder / "streaming" / "x").write_text("scratch")
            raise error

    def test_that_and_nothing_else(self, tmp_path: Path) -> None:
        with claim(tmp_path, "run") as folder:
            write_bytes(folder / "before.txt", b"1")
            (folder / "theirs.txt").write_text("mine")
            with pytest.raises(RunError):
                self.work(folder, RunError("the text is not text"))
        assert everything(tmp_path).keys() == {LEDGER, "before.txt", "theirs.txt"}

    def test_not_what_is_worth_going_on_with(self, tmp_path: Path) -> None:
        with claim(tmp_path, "run") as folder, pytest.raises(RunError):
            self.work(folder, RunError("the text is not text"), kept=True)
        assert (tmp_path / "deep" / "a.txt").is_file()

    def test_not_what_a_full_disk_or_a_fault_stopped(self, tmp_path: Path) -> None:
        for name, error in {"a": WriteError("the disk is full"), "b": KeyError("x")}.items():
            with claim(tmp_path / name, "run") as folder, pytest.raises(type(error)):
                self.work(folder, error)
            assert (tmp_path / name / "deep" / "a.txt").is_file()

    def test_a_folder_that_was_new_is_gone(self, tmp_path: Path) -> None:
        with claim(tmp_path / "new", "run") as folder, pytest.raises(RunError):
            self.work(folder, RunError("the text is not text"))
        assert not (tmp_path / "new").exists()


class TestFolders:
    def fill(self, folder: Path, *names: str) -> None:
        with replacing_folder(folder) as fresh:
            for name in names:
                (fresh / name).write_text(name)

    def test_a_folder_is_replaced_as_a_whole(self, tmp_path: Path) -> None:
        with claim(tmp_path, "run") as folder:
            self.fill(folder / "model", "a", "b")
            self.fill(folder / "model", "b", "c")
            assert files.owned(folder) == ["model/b", "model/c"]
        assert everything(tmp_path).keys() == {LEDGER, "model", "model/b", "model/c"}
        assert ledger(tmp_path)[1:] == [
            f"{hashlib.sha256(n.encode()).hexdigest()}  model/{n}" for n in "bc"
        ]

    def test_a_users_file_in_it_stops_that(self, tmp_path: Path) -> None:
        with claim(tmp_path, "run") as folder:
            self.fill(folder / "model", "a")
            (folder / "model" / "notes.txt").write_text("mine")
            with pytest.raises(RunError, match=r"notes\.txt was not written by moescope"):
                self.fill(folder / "model", "b")
        assert (tmp_path / "model" / "notes.txt").read_text() == "mine"
        assert (tmp_path / "model" / "a").is_file()

    @pytest.mark.parametrize("name", ["model.partial", "model.old"])
    def test_a_users_folder_of_a_passing_name_stops_that(self, name: str, tmp_path: Path) -> None:
        with claim(tmp_path, "run") as folder:
            self.fill(folder / "model", "a")
            (folder / name).mkdir()
            (folder / name / "notes.txt").write_text("mine")
            with pytest.raises(RunError, match="not written by moescope"):
                self.fill(folder / "model", "b")
        assert (tmp_path / name / "notes.txt").read_text() == "mine"
        assert (tmp_path / "model" / "a").is_file()

    @pytest.mark.parametrize("killed", [False, True])
    @pytest.mark.parametrize("renames", [0, 1])
    def test_an_end_anywhere_leaves_one_that_is_whole(
        self, renames: int, killed: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        with claim(tmp_path, "run") as folder:
            self.fill(folder / "model", "old")
        left, rename = [renames], Path.rename

        def ends(path: Path, target: Path) -> Path:
            if not left[0]:
                raise KeyboardInterrupt
            left[0] -= 1
            return rename(path, target)

        with monkeypatch.context() as patch:
            patch.setattr(Path, "rename", ends)
            if killed:  # a killed process cleans nothing up
                patch.setattr(files.writing, "drop_scratch", lambda _: None)
                patch.setattr(files.ledger.Ledger, "compact", lambda *_: None)
            with pytest.raises(KeyboardInterrupt), claim(tmp_path, "run") as folder:
                self.fill(folder / "model", "new")
        whole = tmp_path / ("model.old" if renames else "model")
        assert (whole / "old").read_text() == "old"
        with claim(tmp_path, "run") as folder:
            write_bytes(folder / "other.txt", b"")  # another claim that writes and ends well
        assert is_intact(tmp_path, "model/old", whole / "old")
        with claim(tmp_path, "run") as folder:
            self.fill(folder / "model", "newer")
        assert everything(tmp_path).keys() == {LEDGER, "other.txt", "model", "model/newer"}

    def test_a_rename_that_fails_puts_the_old_one_back(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        with claim(tmp_path, "run") as folder:
            self.fill(folder / "model", "old")
        rename = Path.rename

        def fails(path: Path, target: Path) -> Path:
            if path.name == "model.partial":
                raise OSError(5, "Input/output error")
            return rename(path, target)

        with monkeypatch.context() as patch, claim(tmp_path, "run") as folder:
            patch.setattr(Path, "rename", fails)
            with pytest.raises(WriteError):
                self.fill(folder / "model", "new")
        assert (tmp_path / "model" / "old").read_text() == "old"
        assert is_intact(tmp_path, "model/old")

    def test_what_is_removed_is_not_removed_through_a_link(self, tmp_path: Path) -> None:
        (tmp_path / "home" / "streaming").mkdir(parents=True)
        (tmp_path / "home" / "streaming" / "thesis").write_text("mine")
        with claim(tmp_path / "run", "run") as folder:
            files.keep_scratch(folder / "a" / "streaming")
            (folder / "a").symlink_to(tmp_path / "home")
            files.drop_scratch(folder / "a" / "streaming")
        files.remove_result(tmp_path / "run")
        assert (tmp_path / "home" / "streaming" / "thesis").read_text() == "mine"


class TestSingleFiles:
    def test_only_a_file_of_the_same_make_is_replaced(self, tmp_path: Path) -> None:
        page = tmp_path / "page.html"
        write_bytes(page, b"<made by us> 1", b"<made by us>")
        write_bytes(page, b"<made by us> 2", b"<made by us>")
        assert page.read_bytes() == b"<made by us> 2"
        page.write_text("<p>my own page</p>")
        with pytest.raises(BadInputError, match="is there already"):
            write_bytes(page, b"<made by us> 3", b"<made by us>")
        assert page.read_text() == "<p>my own page</p>"

    def test_a_file_outside_of_results_needs_a_sign(self, tmp_path: Path) -> None:
        with pytest.raises(RunError, match="was moved or replaced"):
            write_bytes(tmp_path / "a", b"1")
        assert everything(tmp_path) == {}
