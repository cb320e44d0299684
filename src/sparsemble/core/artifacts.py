"""Results on disk: hashed directories, written beside and renamed, so present means finished."""

import contextlib
import errno
import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sparsemble.core.errors import InputError, RunError

META = "meta.json"
PARTIAL = ".partial"


def spec_hash(stage: str, version: int, spec: Mapping[str, Any], inputs: Sequence[str]) -> str:
    """Hash what decides a result: the stage, its version, its resolved spec and the hashes of its inputs.

    Args:
        stage: name of the stage.
        version: of the stage, raised when its results change.
        spec: resolved settings as plain JSON values.
        inputs: `role=hash` of every input.
    """
    text = json.dumps([stage, version, spec, list(inputs)], sort_keys=True, ensure_ascii=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def file_hash(path: Path) -> str:
    """Return the sha256 of a file, in hexadecimal."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


@dataclass(frozen=True)
class Artifact:
    """A finished stage: a directory with its files and `meta.json`."""

    path: Path

    @property
    def meta(self) -> dict[str, Any]:
        """Stage, spec, inputs, seconds, versions and the sha256 of every file."""
        meta: dict[str, Any] = read_json(self.path / META)
        return meta

    def file(self, name: str) -> Path:
        """Return the path of one of its files."""
        return self.path / name

    def json(self, name: str) -> Any:
        """Read one of its JSON files."""
        return read_json(self.path / name)

    def json_lines(self, name: str) -> list[Any]:
        """Read one of its files of one JSON value a line."""
        return read_json_lines(self.path / name)

    def verify(self) -> None:
        """Compare every file with its recorded sha256.

        Raises:
            InputError: a file is missing or was changed after it was written.
        """
        files = self.meta.get("files")
        if not isinstance(files, dict):
            raise InputError(f"{self.path / META} names no files; delete {self.path} to compute it again")
        for name, expected in files.items():
            path = self.path / name
            if not path.is_file():
                raise InputError(f"{path} is missing; delete {self.path} to compute it again")
            if file_hash(path) != expected:
                raise InputError(
                    f"{path} was changed after it was written (its sha256 differs from {META}); "
                    f"restore it, or delete {self.path} to compute it again"
                )


def finish(partial: Path, final: Path, meta: Mapping[str, Any]) -> Artifact:
    """Write `meta.json` with the hash of every file and rename the directory into place.

    Args:
        partial: folder with the files of the stage.
        final: path of the finished artifact; an earlier one is replaced.
        meta: what `meta.json` holds besides the hashes of the files.
    """
    files = {
        str(path.relative_to(partial)): file_hash(path)
        for path in sorted(partial.rglob("*"))
        if path.is_file() and path != partial / META
    }
    write_json(partial / META, {**meta, "files": files})
    if final.exists():
        shutil.rmtree(final)
    partial.replace(final)
    return Artifact(final)


def read_json(path: Path) -> Any:
    """Read a JSON file; a fault is an `InputError` that names it."""
    try:
        return json.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{path} cannot be read as JSON: {error}") from error


def read_json_lines(path: Path) -> list[Any]:
    """Read a file of one JSON value a line; a fault is an `InputError` that names it."""
    try:
        return [json.loads(line) for line in path.read_text("utf-8").splitlines()]
    except (OSError, ValueError) as error:
        raise InputError(f"{path} cannot be read as one JSON value a line: {error}") from error


def json_line(value: Any) -> str:
    """Write a value as one line of JSON."""
    return json.dumps(value, allow_nan=False) + "\n"


def write_json(path: Path, value: Any) -> None:
    """Write JSON atomically."""
    write_bytes(path, (json.dumps(value, indent=1, allow_nan=False) + "\n").encode())


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file beside its place and rename it, so that it is whole or absent."""
    beside = path.with_name(path.name + ".new")
    with beside.open("wb") as stream:
        stream.write(content)
        stream.flush()
        os.fsync(stream.fileno())
    beside.replace(path)


@contextlib.contextmanager
def only_run_in(folder: Path) -> Iterator[None]:
    """Hold the folder's lock, so that two runs never share a folder.

    Raises:
        InputError: the folder cannot be written, or another run holds it.
    """
    import fcntl

    try:
        folder.mkdir(parents=True, exist_ok=True)
        stream = (folder / ".lock").open("a+")
    except OSError as error:
        raise InputError(f"{folder} cannot be written ({error.strerror}); choose another with --out") from error
    with stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise InputError(f"another run is at work in {folder}; wait for it or choose another with --out") from None
        yield


def explain_disk(error: OSError, folder: Path) -> RunError | None:
    """Turn a full disk into a sentence; None for any other error."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return RunError(f"the disk that holds {folder} is full; make room and run the same command to go on")
    return None
