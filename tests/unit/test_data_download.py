"""Downloads from a server on this machine; no packet leaves it."""

import hashlib
import http.server
import io
import re
import socket
import tarfile
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from sparsemble.core.errors import InputError
from sparsemble.data.download import Remote, fetch, unpack

CONTENT = bytes(range(256)) * 40
SHA256 = hashlib.sha256(CONTENT).hexdigest()


class Handler(http.server.BaseHTTPRequestHandler):
    """Serves CONTENT: whole.bin with ranges, plain.bin without, short.bin breaks off, wrong.bin is something else."""

    asked: list[str | None]

    def do_GET(self) -> None:
        ranges = self.headers["Range"]
        self.asked.append(ranges)
        if self.path == "/gone.bin":
            self.send_error(404)
            return
        start = int(ranges[6:-1]) if ranges and self.path == "/whole.bin" else 0
        body = CONTENT[::-1] if self.path == "/wrong.bin" else CONTENT[start:]
        self.send_response(206 if start else 200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body[:1000] if self.path == "/short.bin" else body)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    Handler.asked = []
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as made:
        thread = threading.Thread(target=made.serve_forever, args=(0.01,))
        thread.start()
        yield f"http://127.0.0.1:{made.server_address[1]}"
        made.shutdown()
        thread.join()


def remote(*urls: str, sha256: str = SHA256) -> Remote:
    return Remote(urls=urls, size=len(CONTENT), sha256=sha256)


def test_downloads_once_and_names_size_and_checksum(
    server: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "new" / "whole.bin"
    for _ in range(2):
        fetch(remote(f"{server}/whole.bin"), path, download=True)
    assert path.read_bytes() == CONTENT
    assert Handler.asked == [None]
    assert f"{server}/whole.bin: 10,240 bytes, sha256 {SHA256}" in capsys.readouterr().err
    assert [file.name for file in path.parent.iterdir()] == ["whole.bin"]


@pytest.mark.parametrize("name", ["whole.bin", "plain.bin"])
def test_goes_on_where_it_stopped_or_starts_again_where_the_server_cannot(
    server: str, tmp_path: Path, name: str
) -> None:
    (tmp_path / "got.bin.part").write_bytes(CONTENT[:4000])
    fetch(remote(f"{server}/{name}"), tmp_path / "got.bin", download=True)
    assert (tmp_path / "got.bin").read_bytes() == CONTENT
    assert Handler.asked == ["bytes=4000-"]


def test_a_broken_connection_keeps_what_came(server: str, tmp_path: Path) -> None:
    sentence = r"broke off after 1,000 of 10,240 bytes\); run again to go on from the 1,000 bytes in .*got.bin.part, or"
    with pytest.raises(InputError, match=sentence):
        fetch(remote(f"{server}/short.bin"), tmp_path / "got.bin", download=True)
    fetch(remote(f"{server}/whole.bin"), tmp_path / "got.bin", download=True)
    assert (tmp_path / "got.bin").read_bytes() == CONTENT
    assert Handler.asked == [None, "bytes=1000-"]


def test_a_wrong_file_is_deleted_and_the_next_address_tried(server: str, tmp_path: Path) -> None:
    urls = [f"{server}/gone.bin", f"{server}/wrong.bin"]
    wrong = hashlib.sha256(CONTENT[::-1]).hexdigest()
    sentence = rf"gone.bin: Not Found; .*wrong.bin: the file has sha256 {wrong}, expected {SHA256}"
    with pytest.raises(InputError, match=sentence):
        fetch(remote(*urls), tmp_path / "got.bin", download=True)
    assert not list(tmp_path.iterdir())
    fetch(remote(*urls, f"{server}/whole.bin"), tmp_path / "got.bin", download=True)
    assert (tmp_path / "got.bin").read_bytes() == CONTENT


def test_a_wrong_beginning_is_found_out(server: str, tmp_path: Path) -> None:
    (tmp_path / "got.bin.part").write_bytes(b"?" * 4000)
    with pytest.raises(InputError, match="was deleted"):
        fetch(remote(f"{server}/whole.bin"), tmp_path / "got.bin", download=True)
    assert not list(tmp_path.iterdir())


def test_without_network_one_sentence_says_where_to_put_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{probe.getsockname()[1]}/whole.bin"  # bound but not listening: refused
        with pytest.raises(InputError) as caught:
            fetch(remote(url), tmp_path / "whole.bin", download=True)
    assert re.fullmatch(
        rf"whole.bin could not be downloaded \({url}: .*refused\); "
        rf"put {url} \(10,240 bytes, sha256 {SHA256}\) by hand at {tmp_path}/whole.bin",
        str(caught.value),
    )


def test_files_put_by_hand_are_checked_and_kept(tmp_path: Path) -> None:
    path, wanted = tmp_path / "whole.bin", remote("http://127.0.0.1:9/whole.bin")
    with pytest.raises(InputError, match=r"whole.bin is missing; set download = true, or put http"):
        fetch(wanted, path, download=False)
    path.write_bytes(CONTENT[:-1])
    with pytest.raises(InputError, match=r"whole.bin has 10,239 bytes, expected 10,240; delete it"):
        fetch(wanted, path, download=True)
    path.write_bytes(CONTENT[::-1])
    with pytest.raises(InputError, match=rf"whole.bin has sha256 \w+, expected {SHA256}; delete it"):
        fetch(wanted, path, download=True)
    assert path.read_bytes() == CONTENT[::-1]
    path.write_bytes(CONTENT)
    fetch(wanted, path, download=False)


def test_a_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(InputError, match=r"file cannot be made .*; set root to a folder that can"):
        fetch(remote("http://127.0.0.1:9/x"), tmp_path / "file" / "x", download=True)


def test_unpack_takes_the_named_members_only(tmp_path: Path) -> None:
    archive = tmp_path / "made.tar.gz"
    with tarfile.open(archive, "w:gz") as tar:
        for name in ("inner/one.bin", "../../outside.bin", "inner/two.bin"):
            entry = tarfile.TarInfo(name)
            entry.size = len(CONTENT)
            tar.addfile(entry, io.BytesIO(CONTENT))
    root = tmp_path / "root"
    root.mkdir()
    unpack(archive, ["inner/one.bin"], root)
    assert [str(path.relative_to(root)) for path in root.rglob("*")] == ["inner", "inner/one.bin"]
    with pytest.raises(InputError, match=r"made.tar.gz cannot be unpacked .*outside"):
        unpack(archive, ["../../outside.bin"], root)
    with pytest.raises(InputError, match=r"made.tar.gz cannot be unpacked .*three.bin"):
        unpack(archive, ["inner/three.bin"], root)
    archive.write_bytes(archive.read_bytes()[:60])
    with pytest.raises(InputError, match=r"made.tar.gz cannot be unpacked"):
        unpack(archive, ["inner/two.bin"], root)
    assert not (tmp_path / "outside.bin").exists()
