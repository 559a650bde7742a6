"""Pictures fetched from their addresses: politely, in parallel, and on from where an earlier fetch was stopped."""

from __future__ import annotations

import ipaddress
import os
import socket
import ssl
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

import httpx2 as httpx

_AGENT = "fbmem (research on memorization; fetches listed training images once)"
_REDIRECTS = (301, 302, 303, 307, 308)
_BUSY = (408, 425, 429, 500, 502, 503, 504)
_BARE_TYPES = ("", "application/octet-stream", "binary/octet-stream")
_CHUNK = 2**16
_PER_HOST = 2  # connections to one host at a time
_WAIT_AT_MOST = 10.0  # seconds before a busy host is asked once more
# may be otherwise another day: these are asked again by the next fetch
PASSING = frozenset({"timeout", "unreachable", "busy"})


@dataclass(frozen=True)
class Limits:
    """What one answer may take.

    Attributes:
        num_bytes: Most bytes of a body.
        seconds: Most seconds from the first redirect to the last byte.
        num_redirects: Most redirects in a row.
        num_threads: Answers that are awaited at once.
        private_hosts: Hosts that may be asked though their address is no public one, say a mirror in the house.
    """

    num_bytes: int = 50_000_000
    seconds: float = 60.0
    num_redirects: int = 5
    num_threads: int = 16
    private_hosts: Collection[str] = ()


@dataclass(frozen=True)
class Answer:
    """What came of one address.

    Attributes:
        url: The address that was asked.
        status: `ok`, or why there is no file: http, busy, timeout, unreachable, private, too_large, type, truncated,
            redirects, address.
        reason: The same in words.
        final_url: The address that answered, after redirects.
        num_bytes: Length of the body that was kept.
        content_type: As the server names it, such as `image/png`.
    """

    url: str
    status: str
    reason: str = ""
    final_url: str = ""
    num_bytes: int = 0
    content_type: str = ""


class _RefusedError(Exception):
    """An answer that is not kept: status and reason."""

    def __init__(self, status: str, reason: str) -> None:
        super().__init__(reason)
        self.status = status


class Fetcher:
    """Fetches addresses to files.

    Args:
        limits: What one answer may take.
        is_type_right: Told a content type, whether a body of it is worth reading; None: every one is.
    """

    def __init__(self, limits: Limits | None = None, *, is_type_right: Callable[[str], bool] | None = None) -> None:
        self.limits = limits or Limits()
        self._is_type_right = is_type_right or (lambda content_type: True)
        self._tls = ssl.create_default_context()
        self._gates: dict[str, threading.Semaphore] = defaultdict(lambda: threading.Semaphore(_PER_HOST))

    def fetch_all(self, targets: Iterable[tuple[str, Path]]) -> Iterator[tuple[Answer, Path]]:
        """Fetch (address, file) pairs, and give each answer as it comes; a file is there whole or not at all."""
        with ThreadPoolExecutor(self.limits.num_threads) as pool:
            waiting = {pool.submit(self.fetch, url, path): path for url, path in targets}
            try:
                for done in as_completed(waiting):
                    yield done.result(), waiting[done]
            finally:
                for future in waiting:
                    future.cancel()

    def fetch(self, url: str, path: Path) -> Answer:
        """Fetch one address to a file. Whatever the server does ends in an Answer, never in an exception."""
        host = _host_of(url)
        with self._gates[host]:
            answer = self._try(url, path)
            if answer.status == "busy":
                time.sleep(min(_WAIT_AT_MOST, self.limits.seconds / 10))
                answer = self._try(url, path)
        return answer

    def _try(self, url: str, path: Path) -> Answer:
        partial = path.with_name(f".{path.name}.partial")
        deadline = time.monotonic() + self.limits.seconds
        client = httpx.Client(verify=self._tls, timeout=min(20.0, self.limits.seconds), trust_env=False)
        # a server that gives a byte now and then never lets a read time out: the watch closes the connection
        watch = threading.Timer(self.limits.seconds + 1, client.close)
        watch.daemon = True
        watch.start()
        try:
            return self._follow(client, url, partial, path, deadline)
        except _RefusedError as error:
            return Answer(url, error.status, str(error))
        except httpx.TimeoutException:
            return Answer(url, "timeout", f"no answer within {self.limits.seconds:g} s")
        except httpx.RemoteProtocolError as error:
            return Answer(url, "truncated", f"the connection ended early: {error}")
        except (httpx.HTTPError, httpx.InvalidURL, httpx.StreamError, OSError, ValueError, RuntimeError) as error:
            if time.monotonic() > deadline:
                return Answer(url, "timeout", f"no answer within {self.limits.seconds:g} s")
            return Answer(url, "unreachable", f"{type(error).__name__}: {error}")
        finally:
            watch.cancel()
            client.close()
            partial.unlink(missing_ok=True)

    def _follow(self, client: httpx.Client, url: str, partial: Path, path: Path, deadline: float) -> Answer:
        current = url
        for _ in range(self.limits.num_redirects + 1):
            with client.stream("GET", **self._request(current)) as response:
                if response.status_code in _REDIRECTS and "location" in response.headers:
                    current = str(httpx.URL(current).join(response.headers["location"]))
                    continue
                content_type = response.headers.get("content-type", "").partition(";")[0].strip().lower()
                self._check(response, content_type)
                num_bytes = self._save(response, partial, deadline)
            partial.replace(path)
            return Answer(url, "ok", "", current, num_bytes, content_type)
        raise _RefusedError("redirects", f"more than {self.limits.num_redirects} redirects")

    def _request(self, url: str) -> dict[str, object]:
        """The request to the very address that was checked, so that a name cannot lead elsewhere a moment later."""
        parsed = httpx.URL(url)
        if parsed.scheme not in ("http", "https") or not parsed.host:
            raise _RefusedError("address", f"`{url[:80]}` is no http address")
        address = self._address_of(parsed.host, parsed.port or (443 if parsed.scheme == "https" else 80))
        return {
            "url": parsed.copy_with(host=address),
            "headers": {"Host": parsed.netloc.decode("ascii"), "User-Agent": _AGENT, "Accept-Encoding": "identity"},
            "extensions": {"sni_hostname": parsed.host},
        }

    def _address_of(self, host: str, port: int) -> str:
        try:
            found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        except (OSError, UnicodeError) as error:
            raise _RefusedError("unreachable", f"no such host `{host}`: {error}") from None
        addresses = [str(entry[4][0]) for entry in found]
        if host not in self.limits.private_hosts:
            for address in addresses:
                if not ipaddress.ip_address(address.partition("%")[0]).is_global:
                    raise _RefusedError("private", f"`{host}` is {address}, which is no public address")
        return addresses[0]

    def _check(self, response: httpx.Response, content_type: str) -> None:
        code = response.status_code
        if code in _BUSY:
            raise _RefusedError("busy", f"status {code}")
        if code != 200:
            raise _RefusedError("http", f"status {code}")
        if content_type not in _BARE_TYPES and not self._is_type_right(content_type):
            raise _RefusedError("type", f"content of type `{content_type[:60]}`")
        length = response.headers.get("content-length", "")
        if length.isdigit() and int(length) > self.limits.num_bytes:
            raise _RefusedError("too_large", f"{length} bytes; at most {self.limits.num_bytes} are read")

    def _save(self, response: httpx.Response, partial: Path, deadline: float) -> int:
        num_bytes = 0
        with partial.open("wb") as file:
            for chunk in response.iter_bytes(_CHUNK):
                num_bytes += len(chunk)
                if num_bytes > self.limits.num_bytes:
                    raise _RefusedError("too_large", f"more than {self.limits.num_bytes} bytes")
                if time.monotonic() > deadline:
                    raise _RefusedError("timeout", f"not at its end after {self.limits.seconds:g} s")
                file.write(chunk)
            file.flush()
            os.fsync(file.fileno())
        return num_bytes


def _host_of(url: str) -> str:
    try:
        return urlsplit(url).hostname or ""
    except ValueError:
        return ""
