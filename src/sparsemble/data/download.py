"""Download published files, resume interrupted downloads and verify checksums.

Tested against a server on 127.0.0.1; the datasets' real addresses were not tried.
"""

import gzip
import hashlib
import http.client
import ssl
import tarfile
import tempfile
import urllib.error
import urllib.request
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import final

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

from sparsemble.core.artifacts import file_hash
from sparsemble.core.errors import InputError

CHUNK = 1 << 18
TIMEOUT = 30.0
NETWORK_ERRORS = (urllib.error.URLError, http.client.HTTPException, ConnectionError, TimeoutError, ssl.SSLError)
ARCHIVE_ERRORS = (tarfile.TarError, gzip.BadGzipFile, EOFError, zlib.error, KeyError)


@final
@dataclass(frozen=True, kw_only=True)
class Remote:
    """A published file and what is known about it."""

    urls: tuple[str, ...]
    """Where it is published, tried in order."""
    size: int
    """Its length in bytes."""
    sha256: str
    """Its sha256, in hexadecimal."""


def fetch(remote: Remote, path: Path, *, download: bool) -> None:
    """Download a published file unless it is present, and verify it; an interrupted download is resumed.

    Args:
        remote: the published file.
        path: where the file is stored; an unfinished download is `path.part`.
        download: whether it may be downloaded.

    Raises:
        InputError: it is absent and cannot be downloaded, or its size or checksum differs.
    """
    if path.is_file():
        if fault := _fault(remote, path):
            raise InputError(f"{path} {fault}; delete it and run again, or {_by_hand(remote, path)}")
    elif download:
        _download(remote, path)
    else:
        raise InputError(f"{path} is missing; set download = true, or {_by_hand(remote, path)}")


def _download(remote: Remote, path: Path) -> None:
    part = path.with_name(path.name + ".part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except (PermissionError, FileExistsError, NotADirectoryError) as error:
        raise InputError(f"{path.parent} cannot be made ({error.strerror}); set root to a folder that can") from error
    reasons = []
    for url in remote.urls:
        try:
            _receive(url, part, remote)
        except NETWORK_ERRORS as error:
            reasons.append(f"{url}: {getattr(error, 'reason', None) or error}")
            continue
        fault = _fault(remote, part)
        if fault is None:
            part.replace(path)
            return
        part.unlink()
        reasons.append(f"{url}: the file {fault} and was deleted")
    kept = f"run again to go on from the {part.stat().st_size:,} bytes in {part}, or " if part.exists() else ""
    raise InputError(f"{path.name} could not be downloaded ({'; '.join(reasons)}); {kept}{_by_hand(remote, path)}")


def _receive(url: str, part: Path, remote: Remote) -> None:
    received = part.stat().st_size if part.exists() else 0
    if received >= remote.size:
        return
    headers = {"User-Agent": "sparsemble"} | ({"Range": f"bytes={received}-"} if received else {})
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    with (
        urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=TIMEOUT) as response,
        Progress(*columns, TimeRemainingColumn(), console=Console(stderr=True)) as progress,
    ):
        resumed = response.status == http.HTTPStatus.PARTIAL_CONTENT
        progress.console.print(f"{url}: {remote.size:,} bytes, sha256 {remote.sha256}", soft_wrap=True)
        task = progress.add_task(part.stem, total=remote.size, completed=received if resumed else 0)
        with part.open("ab" if resumed else "wb") as stream:
            while chunk := response.read(CHUNK):
                stream.write(chunk)
                progress.advance(task, len(chunk))
    if part.stat().st_size < remote.size:
        raise ConnectionError(f"broke off after {part.stat().st_size:,} of {remote.size:,} bytes")


def unpack(archive: Path, names: Sequence[str], root: Path) -> None:
    """Unpack these members of a tar archive into `root`; each file is renamed into place when it is complete.

    Args:
        archive: a tar file.
        names: members to unpack.
        root: folder they are unpacked into.

    Raises:
        InputError: the archive is damaged or lacks one of them.
    """
    with tempfile.TemporaryDirectory(dir=root, prefix=".unpack-") as beside:
        try:
            with tarfile.open(archive) as tar:
                tar.extractall(beside, [tar.getmember(name) for name in names], filter="data")
        except ARCHIVE_ERRORS as error:
            raise InputError(f"{archive} cannot be unpacked ({error}); delete it and run again") from error
        for name in names:
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            (Path(beside) / name).replace(root / name)


def hash_files(paths: Sequence[Path]) -> str:
    """Return one sha256 for several files, from the sha256 of each."""
    return hashlib.sha256("\n".join(map(file_hash, paths)).encode()).hexdigest()


def _fault(remote: Remote, path: Path) -> str | None:
    size = path.stat().st_size
    if size != remote.size:
        return f"has {size:,} bytes, expected {remote.size:,}"
    sha256 = file_hash(path)
    return None if sha256 == remote.sha256 else f"has sha256 {sha256}, expected {remote.sha256}"


def _by_hand(remote: Remote, path: Path) -> str:
    return f"put {remote.urls[0]} ({remote.size:,} bytes, sha256 {remote.sha256}) by hand at {path}"
