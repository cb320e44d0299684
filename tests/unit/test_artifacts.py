"""Results on disk: what their hash covers, that they are whole or absent, that edits are found, and the lock."""

import errno
import hashlib
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors import SafetensorError

import sparsemble.core.artifacts as artifacts
from sparsemble.core.artifacts import (
    META,
    Artifact,
    explain_disk,
    file_hash,
    finish,
    only_run_in,
    read_json,
    spec_hash,
    write_bytes,
    write_json,
)
from sparsemble.core.errors import InputError, RunError


def folder_with_files(path: Path) -> Path:
    (path / "deep").mkdir(parents=True)
    (path / "a.txt").write_text("first", "utf-8")
    (path / "deep" / "b.bin").write_bytes(bytes(range(256)))
    return path


def finished(tmp_path: Path) -> Artifact:
    return finish(folder_with_files(tmp_path / "x.partial"), tmp_path / "x", {"stage": "x", "seconds": 1.5})


class TestSpecHash:
    def test_covers_stage_version_settings_and_inputs(self) -> None:
        same = ("train", 1, {"a": 1, "b": [0.1, {"c": "x"}]}, ["role=1", "other=2"])
        others = [
            ("trains", *same[1:]),
            ("train", 2, *same[2:]),
            ("train", 1, {"a": 1, "b": [0.1, {"c": "y"}]}, same[3]),
            ("train", 1, {"a": 1, "b": [0.1000001, {"c": "x"}]}, same[3]),
            ("train", 1, {"a": 1}, same[3]),
            ("train", 1, {"a": "1", "b": same[2]["b"]}, same[3]),
            (*same[:3], ["role=1", "other=3"]),
            (*same[:3], ["other=2", "role=1"]),
            (*same[:3], ["role=1"]),
        ]
        hashes = [spec_hash(*case) for case in (same, *others)]
        assert len(set(hashes)) == len(hashes)
        assert all(len(found) == 16 and int(found, 16) >= 0 for found in hashes)

    def test_does_not_depend_on_the_order_of_settings_or_on_the_process(self) -> None:
        assert spec_hash("s", 1, {"a": 1, "b": 2}, []) == spec_hash("s", 1, {"b": 2, "a": 1}, [])
        script = "from sparsemble.core.artifacts import spec_hash; print(spec_hash('s', 1, {'a': 1, 'é': 0.1}, ['i']))"
        run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=True)
        assert run.stdout.strip() == spec_hash("s", 1, {"a": 1, "é": 0.1}, ["i"])


class TestFinish:
    def test_moves_the_folder_and_records_every_file(self, tmp_path: Path) -> None:
        artifact = finished(tmp_path)
        assert artifact.path == tmp_path / "x"
        assert not (tmp_path / "x.partial").exists()
        first = hashlib.sha256(b"first").hexdigest()
        assert artifact.meta["files"] == {"a.txt": first, "deep/b.bin": file_hash(artifact.file("deep/b.bin"))}
        assert (artifact.meta["stage"], artifact.meta["seconds"]) == ("x", 1.5)
        artifact.verify()

    def test_replaces_an_older_one_whole(self, tmp_path: Path) -> None:
        (tmp_path / "x").mkdir()
        (tmp_path / "x" / "old.txt").write_text("old", "utf-8")
        artifact = finished(tmp_path)
        assert not artifact.file("old.txt").exists()
        artifact.verify()

    @pytest.mark.parametrize("step", ["file_hash", "write_json", "write_bytes"])
    def test_a_crash_at_any_step_leaves_no_finished_folder(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str
    ) -> None:
        def crash(*_: object) -> None:
            raise OSError(errno.EIO, "the disk is gone")

        with monkeypatch.context() as broken:
            broken.setattr(artifacts, step, crash)
            with pytest.raises(OSError, match="the disk is gone"):
                finished(tmp_path)
        assert not (tmp_path / "x").exists()
        finish(tmp_path / "x.partial", tmp_path / "x", {}).verify()  # the work is still there

    def test_a_process_killed_before_the_rename_leaves_no_finished_folder(self, tmp_path: Path) -> None:
        folder_with_files(tmp_path / "x.partial")
        script = (
            "import os, pathlib, signal, sparsemble.core.artifacts as artifacts\n"
            "written = artifacts.write_json\n"
            "def then_die(*words): written(*words); os.kill(os.getpid(), signal.SIGKILL)\n"
            "artifacts.write_json = then_die\n"
            f"here = pathlib.Path({str(tmp_path)!r})\n"
            "artifacts.finish(here / 'x.partial', here / 'x', {})\n"
        )
        assert subprocess.run([sys.executable, "-c", script], timeout=60).returncode == -signal.SIGKILL
        assert not (tmp_path / "x").exists()
        assert (tmp_path / "x.partial" / META).is_file()


class TestVerify:
    def test_an_edited_file_is_found(self, tmp_path: Path) -> None:
        artifact = finished(tmp_path)
        raw = bytearray(artifact.file("deep/b.bin").read_bytes())
        raw[100] ^= 1
        artifact.file("deep/b.bin").write_bytes(raw)
        with pytest.raises(InputError, match=r"b\.bin was changed after it was written .* or delete .*x to compute"):
            artifact.verify()
        raw[100] ^= 1
        artifact.file("deep/b.bin").write_bytes(raw)
        artifact.verify()

    def test_a_missing_or_shortened_file_is_found(self, tmp_path: Path) -> None:
        artifact = finished(tmp_path)
        artifact.file("a.txt").write_text("firs", "utf-8")
        with pytest.raises(InputError, match=r"a\.txt was changed"):
            artifact.verify()
        artifact.file("a.txt").unlink()
        with pytest.raises(InputError, match=r"a\.txt is missing; delete .*x to compute it again"):
            artifact.verify()

    def test_a_damaged_meta_file_is_named(self, tmp_path: Path) -> None:
        artifact = finished(tmp_path)
        artifact.file(META).write_text('{"files": {', "utf-8")
        with pytest.raises(InputError, match=r"meta\.json cannot be read as JSON"):
            artifact.verify()
        artifact.file(META).unlink()
        with pytest.raises(InputError, match=r"meta\.json cannot be read as JSON"):
            artifact.verify()

    def test_a_meta_file_without_hashes_is_named(self, tmp_path: Path) -> None:
        artifact = finished(tmp_path)
        artifact.file(META).write_text("{}", "utf-8")
        with pytest.raises(InputError, match=r"meta\.json"):
            artifact.verify()

    def test_a_file_of_the_same_name_deeper_down_is_covered_too(self, tmp_path: Path) -> None:
        partial = folder_with_files(tmp_path / "y.partial")
        (partial / "deep" / META).write_text("{}", "utf-8")
        assert f"deep/{META}" in finish(partial, tmp_path / "y", {}).meta["files"]


class TestJson:
    def test_comes_back_with_every_digit(self, tmp_path: Path) -> None:
        value = {"a": [0.1, 1 / 3, 1e-308, 2**60], "b": None, "c": "é\n", "d": {"e": True}}
        write_json(tmp_path / "v.json", value)
        assert read_json(tmp_path / "v.json") == value
        assert Artifact(tmp_path).json("v.json") == value

    def test_what_json_has_no_word_for_is_refused_and_the_old_file_stays(self, tmp_path: Path) -> None:
        path = tmp_path / "v.json"
        write_json(path, {"good": 1})
        for bad in (float("nan"), float("inf"), {1, 2}):
            with pytest.raises((ValueError, TypeError)):
                write_json(path, {"bad": bad})
        assert read_json(path) == {"good": 1}

    def test_a_write_that_fails_leaves_the_old_content(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        path = tmp_path / "v"
        write_bytes(path, b"old")

        def full(_: int) -> None:
            raise OSError(errno.ENOSPC, "full")

        monkeypatch.setattr(os, "fsync", full)
        with pytest.raises(OSError, match="full"):
            write_bytes(path, b"new")
        assert path.read_bytes() == b"old"

    @pytest.mark.parametrize("content", [b"", b"{", b"\xff"])
    def test_what_is_no_json_is_named(self, tmp_path: Path, content: bytes) -> None:
        (tmp_path / "v.json").write_bytes(content)
        with pytest.raises(InputError, match=r"v\.json cannot be read as JSON"):
            read_json(tmp_path / "v.json")


class TestLock:
    def test_one_run_at_a_time_has_a_folder(self, tmp_path: Path) -> None:
        folder = tmp_path / "new" / "run"
        with only_run_in(folder):
            with (
                pytest.raises(InputError, match=r"another run is working in .*run; wait .* or choose .* --out"),
                only_run_in(folder),
            ):
                pass
            with only_run_in(tmp_path / "other"):
                pass
        with only_run_in(folder):
            assert folder.is_dir()

    def test_is_free_again_after_an_error_and_after_a_kill(self, tmp_path: Path) -> None:
        with pytest.raises(RunError), only_run_in(tmp_path):
            raise RunError("broken")
        script = (
            "import pathlib, time\nfrom sparsemble.core.artifacts import only_run_in\n"
            f"with only_run_in(pathlib.Path({str(tmp_path)!r})): print('held', flush=True); time.sleep(60)"
        )
        with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True) as holder:
            assert holder.stdout is not None
            assert holder.stdout.readline() == "held\n"
            with pytest.raises(InputError, match="another run is working"), only_run_in(tmp_path):
                pass
            holder.kill()
        with only_run_in(tmp_path):
            pass

    def test_a_folder_that_cannot_be_written_is_named(self, tmp_path: Path) -> None:
        (tmp_path / "file").touch()
        with (
            pytest.raises(InputError, match=r"file.run cannot be written \(Not a directory\); choose .* --out"),
            only_run_in(tmp_path / "file" / "run"),
        ):
            pass


@pytest.mark.parametrize(
    "error", [OSError(errno.ENOSPC, "full"), SafetensorError("I/O error: No space left on device (os error 28)")]
)
def test_a_disk_that_fills_while_a_run_works_is_named(error: Exception, tmp_path: Path) -> None:
    with pytest.raises(RunError, match=f"the disk that holds {tmp_path} is full"), only_run_in(tmp_path):
        raise error


def test_a_disk_or_a_file_that_fails_gets_a_sentence_and_other_errors_none() -> None:
    for number in (errno.ENOSPC, errno.EDQUOT):
        found = explain_disk(OSError(number, "x"), Path("runs/a"))
        assert "the disk that holds runs/a is full" in str(found)
    named = explain_disk(PermissionError(errno.EACCES, "x", "runs/a/f"), Path("runs/a"))
    assert str(named) == "runs/a/f cannot be used: Permission denied"
    stored = explain_disk(SafetensorError("Error while serializing: I/O error: ... (os error 28)"), Path("runs/a"))
    assert "the disk that holds runs/a is full" in str(stored)
    assert explain_disk(ValueError("x"), Path("runs/a")) is None
