"""Downloads come from a server on 127.0.0.1 whose paths misbehave, each in the way of its first name."""

import contextlib
import hashlib
import io
import os
import random
import re
import subprocess
import sys
import tarfile
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from filelock import FileLock

from litcifar.data import cifar10_archive, cifar10_files
from litcifar.data.cifar10_archive import Archive, fetch
from litcifar.data.cifar10_files import FILES, FOLDER
from litcifar.errors import DataError, MachineError

NAME = cifar10_archive.OFFICIAL.name
PROBE_BYTES = 4096
CONTENTS = {f"{FOLDER}/{name}": random.Random(name).randbytes(40_000) for name in (*FILES, "readme.html")}


def tarball(contents: dict[str, bytes], *extra: tarfile.TarInfo) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as tar:
        folder = tarfile.TarInfo(FOLDER)
        folder.type, folder.mode = tarfile.DIRTYPE, 0o755
        tar.addfile(folder)
        for name, content in contents.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
        for member in extra:
            tar.addfile(member, io.BytesIO(bytes(member.size)))
    return buffer.getvalue()


def described(content: bytes) -> Archive:
    return Archive(NAME, len(content), hashlib.sha256(content).hexdigest())


BYTES = tarball(CONTENTS)
ARCHIVE = described(BYTES)
HALF = len(BYTES) // 2


class Server(ThreadingHTTPServer):
    """`log` holds (path, first byte asked or None) of each download; probes, which ask for few bytes, are not in."""

    daemon_threads = True
    request_queue_size = 64

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.log: list[tuple[str, int | None]] = []
        self.closing = threading.Event()

    def url(self, path: str) -> str:
        return f"http://127.0.0.1:{self.server_port}/{path}"

    def downloads(self, path: str) -> list[int | None]:
        return [first for asked, first in self.log if asked == path]

    def handle_error(self, request: object, client_address: object) -> None:
        """A client that hangs up is part of the game."""


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        path = self.path.strip("/")
        asked = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
        first, last = (int(asked[1]), int(asked[2])) if asked else (0, len(BYTES) - 1)
        is_probe = first == 0 and last < len(BYTES) - 1
        if not is_probe:
            self.server.log.append((path, first if asked else None))
        if path == "dead":
            self.server.closing.wait(30)
            return
        if path in ("busy", "missing"):
            self.send_error(503 if path == "busy" else 404)
            return
        if path == "loop":
            self.send_response(302)
            self.send_header("Location", "/loop")
            self.end_headers()
            return
        if path.startswith("good") and is_probe:
            time.sleep(0.3)  # so that any other one is faster, and is tried before
        body = bytes(len(BYTES)) if path == "liar" else b"<html>" * 1000 if path == "html" else BYTES
        if path == "html" or not asked or path == "norange":
            self.send_response(200)
        else:
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {first}-{last}/{len(body)}")
            body = body[first : last + 1]
        self.send_header("Content-Type", "text/html" if path == "html" else "application/gzip")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if is_probe or path not in ("half", "stall", "drip"):
            if path == "good-slow" and not is_probe:
                time.sleep(1)
            self.wfile.write(body)
        elif path == "drip":
            for i in range(0, len(body), 1000):
                self.wfile.write(body[i : i + 1000])
                if self.server.closing.wait(0.1):
                    return
        else:
            self.wfile.write(body[: len(body) // 2])
            if path == "stall":
                self.wfile.flush()
                self.server.closing.wait(30)

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def server() -> Iterator[Server]:
    with Server() as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.02,))
        thread.start()
        yield server
        server.closing.set()
        server.shutdown()
        thread.join()


@pytest.fixture(autouse=True)
def impatience(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("no_proxy", "*")
    monkeypatch.setattr(cifar10_archive, "PROBE_BYTES", PROBE_BYTES)
    monkeypatch.setattr(cifar10_archive, "PROBE_SECONDS", 1.0)
    monkeypatch.setattr(cifar10_archive, "STALL_SECONDS", 0.5)
    monkeypatch.setattr(cifar10_archive, "WINDOW_SECONDS", 0.5)


def assert_fetched(root: Path) -> None:
    assert {path.name for path in root.iterdir()} - {f"{NAME}.lock"} == {FOLDER, NAME}
    assert {f"{FOLDER}/{path.name}": path.read_bytes() for path in (root / FOLDER).iterdir()} == CONTENTS
    assert (root / NAME).read_bytes() == BYTES


def message(error: pytest.ExceptionInfo[Exception]) -> str:
    text = str(error.value)
    assert " - " in text
    assert "\n" not in text
    return text


def test_a_complete_folder_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / FOLDER).mkdir()
    for name in FILES:
        (tmp_path / FOLDER / name).touch()
    fetch(tmp_path, [], 0)
    assert [path.name for path in tmp_path.iterdir()] == [FOLDER]


def test_an_archive_in_the_root_needs_no_mirror(tmp_path: Path) -> None:
    (tmp_path / NAME).write_bytes(BYTES)
    fetch(tmp_path, [], 0, ARCHIVE)
    assert_fetched(tmp_path)


def test_download_makes_the_folders_and_says_so_in_two_lines(
    tmp_path: Path, server: Server, capsys: pytest.CaptureFixture[str]
) -> None:
    root = tmp_path / "new" / "folder"
    fetch(root, [server.url("good")], 60, ARCHIVE)
    assert_fetched(root)
    assert server.log == [("good", None)]
    out, err = capsys.readouterr()
    assert (out, len(err.splitlines())) == ("", 2)
    assert str(root) in err


def test_a_terminal_sees_a_progress_bar(tmp_path: Path, server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    monkeypatch.setenv("TERM", "xterm")
    with Terminal() as terminal:
        monkeypatch.setattr(sys, "stderr", terminal)
        fetch(tmp_path, [server.url("good")], 60, ARCHIVE)
        shown = terminal.getvalue()
    assert "CIFAR-10" in shown
    assert re.search(r"kB|MB", shown)
    assert "downloaded" not in shown


@pytest.mark.parametrize(
    ("bad", "goes_on_from"),
    [
        ("half", HALF),
        ("stall", HALF),
        ("norange", None),
        ("liar", None),
        ("dead", None),
        ("busy", None),
        ("missing", None),
        ("html", None),
        ("loop", None),
    ],
)
def test_another_mirror_takes_over(tmp_path: Path, server: Server, bad: str, goes_on_from: int | None) -> None:
    begin = time.monotonic()
    fetch(tmp_path, [server.url(bad), server.url("good")], 60, ARCHIVE)
    assert time.monotonic() - begin < 15  # a stall ends after half a second here
    assert_fetched(tmp_path)
    if bad == "norange":  # does no harm to a download from the start
        assert server.log == [("norange", None)]
    elif bad in ("half", "stall", "liar"):
        assert server.log == [(bad, None), ("good", goes_on_from)]
    else:  # the probe has found out
        assert server.log == [("good", None)]


def test_a_drip_is_left_for_a_faster_mirror(tmp_path: Path, server: Server) -> None:
    fetch(tmp_path, [server.url("drip"), server.url("good")], 10, ARCHIVE)  # the drip takes 28 s
    assert_fetched(tmp_path)
    (first,) = server.downloads("good")
    assert first is not None
    assert 0 < first < HALF


@pytest.mark.parametrize("path", ["good", "norange"])
def test_a_part_is_completed(tmp_path: Path, server: Server, path: str) -> None:
    (tmp_path / f"{NAME}.part").write_bytes(BYTES[:HALF])
    fetch(tmp_path, [server.url(path)], 60, ARCHIVE)
    assert_fetched(tmp_path)
    assert server.log == [(path, HALF)]


def test_a_truncated_archive_is_completed(tmp_path: Path, server: Server) -> None:
    (tmp_path / NAME).write_bytes(BYTES[:HALF])
    fetch(tmp_path, [server.url("good")], 60, ARCHIVE)
    assert_fetched(tmp_path)
    assert server.log == [("good", HALF)]


def test_a_whole_part_needs_no_mirror(tmp_path: Path) -> None:
    (tmp_path / f"{NAME}.part").write_bytes(BYTES)
    fetch(tmp_path, [], 60, ARCHIVE)
    assert_fetched(tmp_path)


@pytest.mark.parametrize("size", [HALF, len(BYTES), len(BYTES) + 1])
def test_a_damaged_part_is_replaced(tmp_path: Path, server: Server, size: int) -> None:
    (tmp_path / f"{NAME}.part").write_bytes(bytes(size))
    fetch(tmp_path, [server.url("good")], 60, ARCHIVE)
    assert_fetched(tmp_path)
    assert server.downloads("good")[-1] is None


def test_bytes_of_a_liar_are_thrown_away_even_after_an_honest_half(tmp_path: Path, server: Server) -> None:
    fetch(tmp_path, [server.url("half"), server.url("liar"), server.url("good")], 60, ARCHIVE)
    assert_fetched(tmp_path)
    assert server.downloads("good") in ([None], [HALF])  # as the race of the first two ends
    assert len(server.downloads("liar")) <= 1


def test_a_killed_download_leaves_no_lock_and_is_resumed(tmp_path: Path, server: Server) -> None:
    part = tmp_path / f"{NAME}.part"
    with started(tmp_path, server.url("drip")) as process:
        while not (part.exists() and part.stat().st_size):
            assert process.poll() is None
            time.sleep(0.02)
        process.kill()
        process.wait()
    fetch(tmp_path, [server.url("good")], 60, ARCHIVE)
    assert_fetched(tmp_path)
    (first,) = server.downloads("good")
    assert first


def started(root: Path, url: str) -> contextlib.AbstractContextManager[subprocess.Popen[str]]:
    """A process of its own that fetches. It does without litcifar/data/__init__.py, whose imports take seconds."""
    code = (
        "import sys, types, litcifar; from pathlib import Path\n"
        "sys.modules['litcifar.data'] = types.ModuleType('litcifar.data')\n"
        "sys.modules['litcifar.data'].__path__ = [litcifar.__path__[0] + '/data']\n"
        "import litcifar.data.cifar10_archive as module\n"
        f"module.PROBE_BYTES = {PROBE_BYTES}\n"
        f"module.fetch(Path({str(root)!r}), [{url!r}], 300, module.{ARCHIVE!r})\n"
        "assert 'torch' not in sys.modules, 'this import would take seconds'\n"
    )
    return subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.PIPE, text=True)


def test_eight_processes_make_one_download(tmp_path: Path, server: Server) -> None:
    with contextlib.ExitStack() as stack:
        processes = [stack.enter_context(started(tmp_path, server.url("good-slow"))) for _ in range(8)]
        errors = [process.communicate()[1] for process in processes]
    assert [process.returncode for process in processes] == [0] * 8, errors
    assert_fetched(tmp_path)
    assert server.log == [("good-slow", None)]
    assert sum("downloaded" in text for text in errors) == 1
    assert any("waiting for another process" in text for text in errors)


def test_who_has_waited_uses_what_is_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    locked = threading.Event()

    def work() -> None:
        with FileLock(tmp_path / f"{NAME}.lock"):
            locked.set()
            time.sleep(0.3)
            (tmp_path / FOLDER).mkdir()
            for name in FILES:
                (tmp_path / FOLDER / name).touch()

    thread = threading.Thread(target=work)
    thread.start()
    locked.wait()
    fetch(tmp_path, [], 60, ARCHIVE)
    thread.join()
    assert f"into {tmp_path}" in capsys.readouterr().err


def test_without_network_the_error_comes_soon(tmp_path: Path, server: Server) -> None:
    begin = time.monotonic()
    mirrors = [server.url("dead"), "http://user:secret@127.0.0.1:9/x", "http://no-such-host.invalid/", "http://[", "?"]
    with pytest.raises(DataError) as error:
        fetch(tmp_path, mirrors, 600, ARCHIVE)
    assert time.monotonic() - begin < 5
    assert "none of 5 mirrors" in message(error)
    assert all(word in message(error) for word in (str(tmp_path), "data.mirrors", "data=shapes"))
    assert "secret" not in message(error)


@pytest.mark.parametrize(
    ("bad", "reason", "kept"),
    [
        ("liar", "SHA-256", 0),
        ("half", "broke off", HALF),
        ("stall", "sent nothing", HALF),
        ("busy", "503", 0),
        ("html", "web page", 0),
        ("loop", "redirect", 0),
    ],
)
def test_when_all_mirrors_fail_the_reason_is_told(
    tmp_path: Path, server: Server, bad: str, reason: str, kept: int
) -> None:
    with pytest.raises(DataError, match=reason) as error:
        fetch(tmp_path, [server.url(bad)], 60, ARCHIVE)
    assert "none of 1 mirrors" in message(error)
    part = tmp_path / f"{NAME}.part"
    content = part.read_bytes() if part.exists() else b""
    assert len(content) >= kept
    assert BYTES.startswith(content)
    assert len(server.downloads(bad)) == {"half": 2, "stall": 2, "liar": 1}.get(bad, 0)


def test_what_cannot_end_in_time_is_stopped_early(tmp_path: Path, server: Server) -> None:
    begin = time.monotonic()
    with pytest.raises(
        DataError, match=r"at \d+ kB/s at best and would take \d+ s more, beyond the limit of 12 s"
    ) as e:
        fetch(tmp_path, [server.url("drip")], 12, ARCHIVE)
    assert time.monotonic() - begin < 6
    assert str(tmp_path / NAME) in message(e)
    part = (tmp_path / f"{NAME}.part").read_bytes()
    assert part
    assert BYTES.startswith(part)


def test_a_foreign_archive_is_named_and_kept(tmp_path: Path, server: Server) -> None:
    (tmp_path / NAME).write_bytes(bytes(len(BYTES)))
    with pytest.raises(DataError, match="SHA-256") as error:
        fetch(tmp_path, [server.url("good")], 60, ARCHIVE)
    assert str(tmp_path / NAME) in message(error)
    assert (tmp_path / NAME).exists()
    assert server.log == []


def test_only_missing_files_are_restored(tmp_path: Path) -> None:
    (tmp_path / NAME).write_bytes(BYTES)
    fetch(tmp_path, [], 60, ARCHIVE)
    (tmp_path / FOLDER / "data_batch_3").unlink()
    (tmp_path / FOLDER / "data_batch_4").write_bytes(b"of the user")
    fetch(tmp_path, [], 60, ARCHIVE)
    assert (tmp_path / FOLDER / "data_batch_3").read_bytes() == CONTENTS[f"{FOLDER}/data_batch_3"]
    assert (tmp_path / FOLDER / "data_batch_4").read_bytes() == b"of the user"


@pytest.mark.parametrize("name", FILES)
def test_a_missing_file_that_cannot_be_restored_is_named(tmp_path: Path, name: str) -> None:
    (tmp_path / NAME).write_bytes(BYTES)
    fetch(tmp_path, [], 60, ARCHIVE)
    (tmp_path / NAME).unlink()
    (tmp_path / FOLDER / name).unlink()
    with pytest.raises(DataError, match=f"lacks {name}: none of 0 mirrors") as error:
        fetch(tmp_path, [], 60, ARCHIVE)
    assert message(error)


def test_leavings_of_a_killed_unpacking_do_not_get_in(tmp_path: Path) -> None:
    (tmp_path / NAME).write_bytes(BYTES)
    stale = tmp_path / f"{FOLDER}.part" / FOLDER
    stale.mkdir(parents=True)
    (stale / "data_batch_1").write_bytes(b"half")
    (stale / "another").touch()
    fetch(tmp_path, [], 60, ARCHIVE)
    assert_fetched(tmp_path)


def member(name: str, kind: bytes = tarfile.REGTYPE, link: str = "", size: int = 0) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname, info.size = kind, link, size
    return info


@pytest.mark.parametrize(
    "hostile",
    [
        member("../evil"),
        member(f"{FOLDER}/../../evil"),
        member("/tmp/evil"),
        member(f"{FOLDER}/evil"),
        member(f"{FOLDER}/readme.html", tarfile.SYMTYPE, "/etc/passwd"),
        member(f"{FOLDER}/readme.html", tarfile.SYMTYPE, "test_batch"),
        member(f"{FOLDER}/readme.html", tarfile.LNKTYPE, "../evil"),
        member(f"{FOLDER}/readme.html", tarfile.CHRTYPE),
        member(f"{FOLDER}/readme.html", tarfile.FIFOTYPE),
        member(FOLDER, tarfile.SYMTYPE, "/tmp"),
        member(f"{FOLDER}/readme.html", size=100_000),
    ],
    ids=lambda info: f"{info.name} {info.type!r} {info.size}",
)
def test_hostile_archives_leave_nothing(
    tmp_path: Path, hostile: tarfile.TarInfo, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cifar10_files, "UNPACKED_BYTES", 400_000)
    content = tarball(CONTENTS, hostile)
    root = tmp_path / "root"
    root.mkdir()
    (root / NAME).write_bytes(content)
    with pytest.raises(DataError) as error:
        fetch(root, [], 60, described(content))
    assert repr(hostile.name) in message(error)
    assert [path.name for path in tmp_path.iterdir()] == ["root"]
    assert {path.name for path in root.iterdir()} <= {NAME, f"{NAME}.lock"}


@pytest.mark.parametrize(
    "content",
    [b"no archive", BYTES[:HALF], tarball({}), tarball(dict(list(CONTENTS.items())[1:]))],
    ids=["text", "half", "empty", "a file lacks"],
)
def test_broken_archives_leave_nothing(tmp_path: Path, content: bytes) -> None:
    (tmp_path / NAME).write_bytes(content)
    with pytest.raises(DataError) as error:
        fetch(tmp_path, [], 60, described(content))
    assert str(tmp_path / NAME) in message(error)
    assert {path.name for path in tmp_path.iterdir()} <= {NAME, f"{NAME}.lock"}


def test_a_file_in_the_place_of_a_folder(tmp_path: Path) -> None:
    (tmp_path / FOLDER).touch()
    for root in (tmp_path, tmp_path / FOLDER):
        with pytest.raises(DataError, match=f"{FOLDER} is a file") as error:
            fetch(root, [], 60, ARCHIVE)
        assert message(error)


def test_a_root_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(MachineError, match="set data") as error:
        fetch(tmp_path / "file" / "root", [], 60, ARCHIVE)
    assert str(tmp_path / "file" / "root") in message(error)


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs Linux's /dev/full")
def test_a_full_disk(tmp_path: Path, server: Server) -> None:
    (tmp_path / f"{NAME}.part").symlink_to("/dev/full")
    with pytest.raises(MachineError, match="No space left") as error:
        fetch(tmp_path, [server.url("good")], 60, ARCHIVE)
    assert "free disk space" in message(error)
