"""Artifacts: directories named by a hash, written under another name and renamed when they are complete."""

import contextlib
import errno
import hashlib
import json
import os
import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from sparsemble.core.config import read_text
from sparsemble.core.errors import InputError, RunError

META = "meta.json"
PARTIAL = ".partial"


def spec_hash(stage: str, version: int, spec: Mapping[str, Any], inputs: Sequence[str]) -> str:
    """Return the hash of everything that determines a result.

    Args:
        stage: name of the stage.
        version: raised when the stage's results change.
        spec: resolved settings.
        inputs: hashes of the artifacts that it reads.
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
        """Return stage, spec, inputs, seconds, versions and the sha256 of every file."""
        meta: dict[str, Any] = read_json(self.path / META)
        return meta

    def file(self, name: str) -> Path:
        """Return the path of a file."""
        return self.path / name

    def json(self, name: str) -> Any:
        """Read a JSON file."""
        return read_json(self.path / name)

    def json_lines(self, name: str) -> list[Any]:
        """Read a file with one JSON value per line."""
        return read_json_lines(self.path / name)

    def verify(self) -> None:
        """Compare every file with its recorded sha256."""
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
        partial: the directory with the files of the artifact.
        final: its path when it is complete; an artifact that is there is replaced.
        meta: what `meta.json` holds beside the hashes.
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
    """Read a JSON file."""
    try:
        return json.loads(read_text(path))
    except (OSError, ValueError) as error:
        raise InputError(f"{path} cannot be read as JSON: {error}") from error


def read_json_lines(path: Path) -> list[Any]:
    """Read a file with one JSON value per line."""
    try:
        return [json.loads(line) for line in read_text(path).split("\n") if line]
    except (OSError, ValueError) as error:
        raise InputError(f"{path} cannot be read as one JSON value a line: {error}") from error


def json_line(value: Any) -> str:
    """Return a value as one line of JSON."""
    return json.dumps(value, allow_nan=False) + "\n"


def write_json(path: Path, value: Any) -> None:
    """Write JSON atomically."""
    write_bytes(path, (json.dumps(value, indent=1, allow_nan=False) + "\n").encode())


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file atomically: under another name, then renamed."""
    temporary = path.with_name(path.name + ".new")
    with temporary.open("wb") as stream:
        stream.write(content)
        stream.flush()
        os.fsync(stream.fileno())
    temporary.replace(path)


@contextlib.contextmanager
def only_run_in(folder: Path) -> Iterator[None]:
    """Lock a folder while the context is open, so that two runs never write to one folder.

    Raises:
        InputError: the folder cannot be written, or another run has it.
        RunError: the disk was full, or a file could not be read or written, while the context was open.
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
            raise InputError(f"another run is working in {folder}; wait for it or choose another with --out") from None
        try:
            yield
        except (OSError, SafetensorError) as error:
            raise explain_disk(error, folder) or error from error


def explain_disk(error: Exception, folder: Path | None = None) -> RunError | None:
    """Return a file or disk that cannot be read or written as an error of one sentence; None for any other error.

    Args:
        error: an `OSError`, or that of safetensors, which has its number in its text.
        folder: where the work is kept, if that is known.
    """
    number, file = (error.errno, error.filename) if isinstance(error, OSError) else (None, None)
    if isinstance(error, SafetensorError) and (found := re.search(r"\(os error (\d+)\)", str(error))):
        number = int(found[1])
    if number is None:
        return None
    if number in (errno.ENOSPC, errno.EDQUOT):
        place = folder or file or "the result"
        return RunError(f"the disk that holds {place} is full; make room and run the same command to go on")
    return RunError(f"{file or folder or 'a file'} cannot be used: {os.strerror(number)}")
