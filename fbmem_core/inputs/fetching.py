"""Download of pictures that prompt sets name by URL: polite, parallel, resumable, and honest about what is gone.

Each URL ends in one row: `ok`, or the reason for which there is no picture. Files are named by their URL, so that a
second call goes on where the first was stopped and asks for nothing twice.
"""

from __future__ import annotations

import hashlib
import ipaddress
import json
import socket
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from urllib.parse import urljoin, urlsplit

import httpx2 as httpx
import numpy as np

from fbmem_core.errors import InputError
from fbmem_core.inputs.pictures import decode_rgb

OUTCOMES_NAME = "fetched.jsonl"
USER_AGENT = "fbmem (research on memorization; fetches each picture once)"
_PLACEHOLDER_URLS = 3  # of one host that serve one picture
_REDIRECTS = (301, 302, 303, 307, 308)
_PASSING = ("timeout", "too slow", "no connection", "server error")  # worth another try by a later call
_SUFFIXES = {
    "JPEG": ".jpg", "PNG": ".png", "WEBP": ".webp", "GIF": ".gif", "BMP": ".bmp", "TIFF": ".tif", "AVIF": ".avif",
}  # fmt: skip


@dataclass(frozen=True)
class FetchLimits:
    """Limits of what a download may cost.

    Attributes:
        timeout: Seconds until a server answers, and between two pieces of an answer.
        deadline: Seconds that one picture may take in all.
        max_bytes: Of one picture.
        max_redirects: Followed for one URL, each checked anew.
        num_threads: Pictures that are fetched at once.
        host_delay: Seconds between two requests to one host.
        allow_private: Ask addresses of the own network too; for tests.
    """

    timeout: float = 10.0
    deadline: float = 60.0
    max_bytes: int = 50_000_000
    max_redirects: int = 5
    num_threads: int = 16
    host_delay: float = 0.1
    allow_private: bool = False


@dataclass(frozen=True)
class Fetched:
    """Outcome of one URL: `ok` with the file's name and hash, or the reason why there is no picture."""

    url: str
    status: str
    file: str | None = None
    sha256: str | None = None
    detail: str = ""


class _FailedError(Exception):
    """Why there is no picture: the status, and what was seen."""

    def __init__(self, status: str, detail: object = "") -> None:
        super().__init__(status)
        self.status, self.detail = status, " ".join(str(detail).split())[:200]


def fetch_pictures(
    urls: Sequence[str],
    folder: Path,
    limits: FetchLimits | None = None,
    *,
    report: Callable[[Fetched], None] = lambda outcome: None,
) -> list[Fetched]:
    """Fetch each URL once into a folder.

    Statuses besides `ok`: `bad url`, `private address`, `no such host`, `no connection`, `timeout`, `too slow`,
    `http 404` and the like, `server error`, `too many redirects`, `too large`, `truncated`, `wrong type` (no picture),
    `single colour`, `placeholder` (one picture for several URLs of one host, which serves it where another was).

    Args:
        urls: May repeat.
        folder: Where pictures are kept, with `fetched.jsonl`, a line for each URL.
        limits: What it may cost.
        report: Called with each outcome, from one thread at a time.

    Returns:
        One outcome for each different URL, in their order.

    Raises:
        InputError: The folder cannot be written.
    """
    limits = limits or FetchLimits()
    distinct = list(dict.fromkeys(urls))
    done = {outcome.url: outcome for outcome in _kept(folder) if not _again(outcome, folder)}
    missing = [url for url in distinct if url not in done]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with (folder / OUTCOMES_NAME).open("a", encoding="utf-8") as log, _Client(limits) as client:
            for outcome in _fetch_all(missing, folder, client, limits):
                log.write(json.dumps(asdict(outcome)) + "\n")
                log.flush()
                done[outcome.url] = outcome
                report(outcome)
    except OSError as error:
        raise InputError(
            "a folder that can be written", error.strerror or error, where=folder, cure="Free it."
        ) from None
    return _without_placeholders([done[url] for url in distinct])


def _fetch_all(urls: Sequence[str], folder: Path, client: _Client, limits: FetchLimits) -> Iterator[Fetched]:
    pool = ThreadPoolExecutor(limits.num_threads)
    try:
        yield from pool.map(lambda url: _fetch(url, folder, client), urls)
    finally:
        client.is_stopped.set()
        pool.shutdown(wait=True, cancel_futures=True)


def _fetch(url: str, folder: Path, client: _Client) -> Fetched:
    try:
        content = client.get(url)
        suffix = _checked(content)
    except _FailedError as failed:
        return Fetched(url, failed.status, detail=failed.detail)
    name = f"{hashlib.sha256(url.encode('utf-8', 'replace')).hexdigest()[:24]}{suffix}"
    partial = folder / f".{name}.partial"
    partial.write_bytes(content)
    partial.replace(folder / name)
    return Fetched(url, "ok", name, hashlib.sha256(content).hexdigest())


def _checked(content: bytes) -> str:
    """The suffix of a whole picture that shows something."""
    import io

    from PIL import Image

    try:
        image = decode_rgb(content)
        with Image.open(io.BytesIO(content)) as opened:
            kind = opened.format or ""
    except InputError as error:
        is_cut = "truncated" in str(error)
        raise _FailedError("truncated" if is_cut else "wrong type", error) from None
    pixels = np.asarray(image).reshape(-1, 3)
    if int((pixels.max(axis=0) - pixels.min(axis=0)).max()) < 8:
        raise _FailedError("single colour", f"{image.width}x{image.height}")
    return _SUFFIXES.get(kind, ".img")


class _Client:
    """Asks servers, one host not too often, and no address of the own network."""

    def __init__(self, limits: FetchLimits) -> None:
        self._limits = limits
        self._client = httpx.Client(
            timeout=limits.timeout, headers={"User-Agent": USER_AGENT, "Accept": "image/*"}, follow_redirects=False,
            limits=httpx.Limits(max_connections=limits.num_threads), trust_env=True,
        )  # fmt: skip
        self._next: dict[str, float] = {}
        self._lock = threading.Lock()
        self.is_stopped = threading.Event()

    def __enter__(self) -> _Client:
        return self

    def __exit__(self, *error: object) -> None:
        self._client.close()

    def get(self, url: str) -> bytes:
        """The bytes of a URL, after its redirects."""
        deadline = time.monotonic() + self._limits.deadline
        for _ in range(self._limits.max_redirects + 1):
            self._check(url)
            self._wait(urlsplit(url).netloc)
            answer = self._ask(url, deadline)
            if isinstance(answer, bytes):
                return answer
            url = urljoin(url, answer)
        raise _FailedError("too many redirects", url)

    def _check(self, url: str) -> None:
        """Refuse all but http and public addresses: a list of URLs must not reach into the reader's network."""
        try:
            parts = urlsplit(url)
            host, port = parts.hostname, parts.port or (443 if parts.scheme == "https" else 80)
        except ValueError as error:
            raise _FailedError("bad url", error) from None
        if parts.scheme not in ("http", "https") or not host:
            raise _FailedError("bad url", url)
        try:
            addresses = {info[4][0] for info in socket.getaddrinfo(host, port, proto=socket.IPPROTO_TCP)}
        except (OSError, UnicodeError) as error:
            raise _FailedError("no such host", error) from None
        if self._limits.allow_private:
            return
        for address in addresses:
            if not ipaddress.ip_address(str(address).partition("%")[0]).is_global:
                raise _FailedError("private address", f"{host}: {address}")

    def _wait(self, host: str) -> None:
        with self._lock:
            at = max(self._next.get(host, 0.0), time.monotonic())
            self._next[host] = at + self._limits.host_delay
        if self.is_stopped.wait(max(0.0, at - time.monotonic())):
            raise _FailedError("no connection", "stopped")

    def _ask(self, url: str, deadline: float) -> bytes | str:
        """The bytes, or where it redirects."""
        try:
            with self._client.stream("GET", url) as response:
                if response.status_code in _REDIRECTS and "location" in response.headers:
                    return str(response.headers["location"])
                if response.status_code >= 500:
                    raise _FailedError("server error", response.status_code)
                if response.status_code != 200:
                    raise _FailedError(f"http {response.status_code}")
                kind = response.headers.get("content-type", "").partition(";")[0].strip().lower()
                if kind.startswith("text/"):
                    raise _FailedError("wrong type", kind)
                return self._body(response, deadline)
        except httpx.TimeoutException as error:
            raise _FailedError("timeout", type(error).__name__) from None
        except httpx.RemoteProtocolError as error:
            raise _FailedError("truncated", error) from None
        except (httpx.HTTPError, httpx.InvalidURL, OSError, ValueError, UnicodeError) as error:
            raise _FailedError("no connection", f"{type(error).__name__}: {error}") from None

    def _body(self, response: httpx.Response, deadline: float) -> bytes:
        content = bytearray()
        for piece in response.iter_bytes():
            content += piece
            if len(content) > self._limits.max_bytes:
                raise _FailedError("too large", f"over {self._limits.max_bytes} bytes")
            if time.monotonic() > deadline:
                raise _FailedError("too slow", f"{len(content)} bytes in {self._limits.deadline:g} s")
            if self.is_stopped.is_set():
                raise _FailedError("no connection", "stopped")
        return bytes(content)


def _kept(folder: Path) -> Iterator[Fetched]:
    """Outcomes of earlier calls; a line that was cut off by a kill counts as none."""
    file = folder / OUTCOMES_NAME
    if not file.is_file():
        return
    for line in file.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            yield Fetched(**json.loads(line))
        except (ValueError, TypeError):
            continue


def _again(outcome: Fetched, folder: Path) -> bool:
    """True if the URL is to be fetched once more: after a passing fault, or for a file that is gone."""
    return outcome.status in _PASSING or (outcome.file is not None and not (folder / outcome.file).is_file())


def _without_placeholders(outcomes: Iterable[Fetched]) -> list[Fetched]:
    """One picture that a host serves for three different URLs or more is its `not found`."""
    outcomes = list(outcomes)
    urls_of: dict[tuple[str, str], int] = {}
    for outcome in outcomes:
        if outcome.sha256 is not None:
            key = (urlsplit(outcome.url).netloc, outcome.sha256)
            urls_of[key] = urls_of.get(key, 0) + 1
    return [_marked(outcome, urls_of) for outcome in outcomes]


def _marked(outcome: Fetched, urls_of: dict[tuple[str, str], int]) -> Fetched:
    count = urls_of.get((urlsplit(outcome.url).netloc, outcome.sha256 or ""), 0)
    if count < _PLACEHOLDER_URLS:
        return outcome
    return Fetched(outcome.url, "placeholder", None, outcome.sha256, f"one picture for {count} URLs of its host")
