"""Downloads that resume and are verified.

Proxies are those of the environment (`HTTPS_PROXY`, `NO_PROXY` and so on). The cache is the user's
cache folder; `CLUE_JAX_HOME` moves it.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import http.client
import json
import os
import re
import shutil
import sys
import time
import urllib.error
import urllib.parse
import urllib.request
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)

from clue_jax.archives import ZIP_ERRORS
from clue_jax.errors import UserError
from clue_jax.files import read_object, sha256, write_json

ATTEMPTS = 5
TIMEOUT_S = 30.0
_CHUNK = 1 << 20
_RETRIED = frozenset({408, 425, 429, 500, 502, 503, 504})
LOCK = "downloads.json"


class _Cut(Exception):
    """A fault that may pass: the next attempt goes on where this one ended."""


class _OutOfRange(Exception):
    """The server has nothing behind the bytes that are here."""


class NotThere(UserError):
    """The server has no such file."""


def cache_directory() -> Path:
    """Where downloads are kept."""
    if home := os.environ.get("CLUE_JAX_HOME"):
        return Path(home)
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "clue_jax"


@dataclass(frozen=True)
class Fetched:
    """A file that arrived.

    Attributes:
      path: where it is.
      size: bytes.
      sha256: of the content.
      recorded: whether this was the first download of that address, so that nothing but the
        recording it now makes could be compared with.
    """

    path: Path
    size: int
    sha256: str
    recorded: bool


def fetch(
    address: str,
    path: Path,
    *,
    key: str | None = None,
    lock: Path | None = None,
    pause_s: float = 1.0,
    check: Callable[[Path], Any] | None = None,
) -> Fetched:
    """Downloads a file (or copies a local one) and verifies it against its first download.

    A cut connection is tried again, and goes on where it ended if the file has not changed; so does
    the next call. The file takes its name when it is complete. Of processes that download the same
    file, one does and the others wait for it.

    Args:
      address: a URL, or a local path.
      path: the file to write.
      key: under which the digest is recorded; default the address. A mirror has the key of the
        original, so that one is verified against the other.
      lock: the file of recorded digests (default: in the cache folder).
      pause_s: before the second attempt, in seconds; doubled every time.
      check: reads what arrived and raises UserError if it is not what it should be; only what
        passes is recorded. Of a zip, the checksums of all members are checked in any case.

    Raises:
      NotThere: if there is no such file.
      UserError: if it cannot be reached, is not what it should be, or differs from the recording.
    """
    lock = lock or cache_directory() / LOCK
    key = key or address
    with exclusive(path):
        return _fetch(address, path, key, lock, pause_s, check)


def _fetch(
    address: str,
    path: Path,
    key: str,
    lock: Path,
    pause_s: float,
    check: Callable[[Path], Any] | None,
) -> Fetched:
    part = path.parent / f"{path.name}.part"
    announced = None
    if is_url(address):
        announced = _download(_quoted(address), part, pause_s)
    else:
        _copy(local(address), part)
    _refuse_html(part, path.name, address)
    size, digest = part.stat().st_size, sha256(part)
    if announced and digest != announced:
        part.unlink()
        raise UserError(f"{address}: arrived damaged; its SHA-256 is not the one announced")
    if not size:
        part.unlink()
        raise UserError(f"{address}: is empty")
    try:
        _check_zip(part, path.name)
        if check is not None:
            check(part)
    except UserError as error:
        part.unlink()
        reason = str(error).replace(str(part), path.name)
        raise UserError(f"{address}: what arrived is not right: {reason}") from error
    try:
        before = _record(lock, key, {"sha256": digest, "size": size})
    except UserError as error:
        part.unlink()
        raise UserError(f"{address}: {error}") from error
    part.replace(path)
    return Fetched(path, size, digest, recorded=before is None)


@contextlib.contextmanager
def exclusive(path: Path) -> Iterator[None]:
    """Keeps other processes that want the same file or folder waiting for as long as it lasts."""
    path.parent.mkdir(parents=True, exist_ok=True)
    locks = cache_directory() / "locks"
    locks.mkdir(parents=True, exist_ok=True)
    name = hashlib.sha256(os.path.realpath(path).encode()).hexdigest()[:32]
    with (locks / name).open("w") as guard:
        try:
            fcntl.flock(guard, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print(f"waiting for another process that writes {path}", file=sys.stderr)
            fcntl.flock(guard, fcntl.LOCK_EX)
        yield


def _check_zip(part: Path, name: str) -> None:
    if not name.endswith(".zip"):
        return
    try:
        with zipfile.ZipFile(part) as archive:
            damaged = archive.testzip()
    except ZIP_ERRORS as error:
        raise UserError(f"{part}: damaged ({error})") from error
    if damaged:
        raise UserError(f"{part}: damaged; the checksum of {damaged} does not match")


def _record(lock: Path, key: str, entry: dict[str, Any]) -> dict[str, Any] | None:
    """Compares with the first download of this key, or records it; returns the earlier entry."""
    lock.parent.mkdir(parents=True, exist_ok=True)
    with (lock.parent / f".{lock.name}.lock").open("w") as guard:
        fcntl.flock(guard, fcntl.LOCK_EX)  # other processes record theirs in the same file
        known = read_object(lock) if lock.exists() else {}
        before = known.get(key)
        if before is None:
            date = datetime.now(UTC).date().isoformat()
            write_json(lock, known | {key: entry | {"date": date}})
            return None
    if not isinstance(before, dict) or any(before.get(name) != entry[name] for name in entry):
        raise UserError(
            f"{entry['size']} bytes with SHA-256 {entry['sha256']}, but at the first download "
            f"they were others: {json.dumps(before)}; if the change is right, remove the entry "
            f"from {lock}"
        )
    return before


def digest_of(path: Path, key: str, lock: Path | None = None) -> str:
    """The SHA-256 of a file in the cache, compared with its first download if that was recorded.

    Args:
      path: the file.
      key: of its record, see `fetch`.
      lock: see `fetch`.

    Raises:
      UserError: if the file is not what was downloaded.
    """
    digest = sha256(path)
    lock = lock or cache_directory() / LOCK
    known = read_object(lock).get(key) if lock.exists() else None
    if isinstance(known, dict) and known.get("sha256") != digest:
        raise UserError(
            f"{path}: is not what was downloaded (SHA-256 {digest}, then {known.get('sha256')}); "
            "remove the file, and it is downloaded again"
        )
    return digest


def is_url(address: str) -> bool:
    """Whether an address is fetched by HTTP; any other is a local path."""
    return re.match(r"https?://", address) is not None


def join(place: str, name: str) -> str:
    """A file of a folder or URL."""
    return f"{place.rstrip('/')}/{name}" if is_url(place) else str(local(place) / name)


def local(address: str) -> Path:
    """A local path, which may be written as a file: URL."""
    return Path(urllib.parse.unquote(re.sub(r"^file:(//(localhost)?(?=/))?", "", address)))


def _quoted(url: str) -> str:
    """A URL as it is sent: characters beyond ASCII in its path are encoded.

    Raises:
      UserError: if it is malformed.
    """
    try:
        parts = urllib.parse.urlsplit(url)
        host = parts.netloc.encode("idna").decode() if not parts.netloc.isascii() else parts.netloc
        path = urllib.parse.quote(parts.path, safe="/%:@!$&'()*+,;=~")
        return urllib.parse.urlunsplit((parts.scheme, host, path, parts.query, ""))
    except ValueError as error:
        raise UserError(f"{url}: not a valid address ({error})") from error


def _copy(source: Path, part: Path) -> None:
    if not source.is_file():
        raise NotThere(f"{source}: no such file")
    try:
        shutil.copyfile(source, part)
    except OSError as error:
        raise UserError(f"{source}: cannot copy to {part} ({error.strerror})") from error


def _download(url: str, part: Path, pause_s: float) -> str | None:
    """Brings the file to `part`; returns the SHA-256 that the server announced, if it did."""
    marks = part.parent / f"{part.name}.json"
    for attempt in range(1, ATTEMPTS + 1):
        try:
            announced = _attempt(url, part, marks)
            marks.unlink(missing_ok=True)
            return announced
        except _Cut as error:
            if attempt == ATTEMPTS:
                kept = part.stat().st_size if part.exists() else 0
                rest = (
                    f"; {kept} bytes are kept in {part} and the same command goes on from there"
                    if kept
                    else ""
                )
                raise UserError(f"{url}: {error}, after {ATTEMPTS} attempts{rest}") from error
            time.sleep(pause_s * 2 ** (attempt - 1))
        except OSError as error:
            raise UserError(f"{part}: cannot write ({error.strerror or error})") from error
    raise AssertionError("unreachable")


def _attempt(url: str, part: Path, marks: Path) -> str | None:
    known: dict[str, Any] = {}
    with contextlib.suppress(OSError, ValueError):
        known = json.loads(marks.read_text())
    have = part.stat().st_size if part.exists() else 0
    headers = {"User-Agent": "clue_jax", "Accept-Encoding": "identity"}
    # Only what can be proved to be the same file is gone on with.
    if have and known.get("url") == url and known.get("mark"):
        headers |= {"Range": f"bytes={have}-", "If-Range": known["mark"]}
    try:
        opened = _open(url, headers)
    except _OutOfRange as error:
        part.unlink()  # nothing is left to send of it, so it is not what the server has
        raise _Cut("the server has no more of it; starting again") from error
    with opened as response:
        start = 0
        if response.status == 206:
            match = re.fullmatch(
                r"bytes (\d+)-\d+/(\d+)", response.headers.get("Content-Range", "")
            )
            if not match or int(match[1]) != have:
                part.unlink()
                raise _Cut("the server answered with another range")
            start, total = have, int(match[2])
        else:
            length = response.headers.get("Content-Length")
            total = int(length) if length and length.isdigit() else None
        mark = response.headers.get("ETag") or response.headers.get("Last-Modified")
        if mark and mark.startswith("W/"):
            mark = None  # a weak mark does not promise equal bytes
        marks.write_text(json.dumps({"url": url, "mark": mark}))
        linked = response.headers.get("X-Linked-Etag", "").strip('"')
        if response.headers.get("Content-Encoding", "identity") not in ("", "identity"):
            raise UserError(f"{url}: the server packs what it sends, which was not asked for")
        received = _receive(response, part, start, total)
    if total is not None and received != total:
        if received > total:
            part.unlink()
        raise _Cut(f"{received} of {total} bytes arrived")
    return linked if re.fullmatch(r"[0-9a-f]{64}", linked) else None


def _open(url: str, headers: dict[str, str]) -> Any:
    try:
        opener = urllib.request.build_opener(_KeepDigest)
        return opener.open(urllib.request.Request(url, headers=headers), timeout=TIMEOUT_S)
    except urllib.error.HTTPError as error:
        error.close()
        if error.code in _RETRIED:
            raise _Cut(f"the server answered {error.code}") from error
        if error.code in (404, 410):
            raise NotThere(f"{url}: the server has no such file ({error.code})") from error
        if error.code == 416:
            raise _OutOfRange from error
        raise UserError(f"{url}: the server answered {error.code} {error.reason}") from error
    except urllib.error.URLError as error:
        if "certificate" in str(error.reason).lower():
            raise UserError(f"{url}: {error.reason}") from error
        raise _Cut(f"cannot be reached ({error.reason})") from error
    except (OSError, http.client.HTTPException) as error:
        raise _Cut(f"the connection broke ({error})") from error


class _KeepDigest(urllib.request.HTTPRedirectHandler):
    """The Hugging Face hub tells a file's digest in the answer that redirects to its storage."""

    def redirect_request(self, request, file, code, message, headers, new_url):  # noqa: ANN001, ANN202
        redirected = super().redirect_request(request, file, code, message, headers, new_url)
        if redirected is not None:
            redirected.linked = headers.get("X-Linked-Etag") or getattr(request, "linked", None)
        return redirected

    def http_response(self, request, response):  # noqa: ANN001, ANN202
        linked = getattr(request, "linked", None)
        if linked and "X-Linked-Etag" not in response.headers:
            response.headers["X-Linked-Etag"] = linked
        return response

    https_response = http_response


def _receive(response: Any, part: Path, start: int, total: int | None) -> int:
    """Appends the body to `part`; returns the bytes now there."""
    console = Console(stderr=True)
    progress = Progress(
        TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn(),
        TimeRemainingColumn(), console=console, disable=not console.is_terminal,
    )  # fmt: skip
    done = start
    with progress, part.open("ab" if start else "wb") as file:
        task = progress.add_task(part.name.removesuffix(".part"), total=total, completed=start)
        while True:
            try:
                chunk = response.read(_CHUNK)
            except http.client.IncompleteRead as error:
                file.write(error.partial)
                done += len(error.partial)
                raise _Cut(f"the connection broke after {done} bytes") from error
            except (OSError, http.client.HTTPException) as error:
                raise _Cut(f"the connection broke after {done} bytes ({error})") from error
            if not chunk:
                return done
            file.write(chunk)
            done += len(chunk)
            progress.update(task, completed=done)


def _refuse_html(part: Path, name: str, address: str) -> None:
    """A captive portal or an error page comes with status 200 as well."""
    if name.endswith((".html", ".htm")):
        return
    with part.open("rb") as file:
        start = file.read(512).lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if start.startswith((b"<!doctype html", b"<html", b"<head", b"<?xml")):
        part.unlink()
        raise UserError(
            f"{address}: a web page came instead of {name}; is a login or proxy needed?"
        )
    if name.endswith(".zip") and not zipfile.is_zipfile(part):
        part.unlink()
        raise UserError(f"{address}: what came is no zip file")
