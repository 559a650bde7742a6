"""Prompt packs, and the fetch of their pictures from a server that misbehaves."""

import contextlib
import csv
import io
import socket
import threading
import time
import zlib
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest
from PIL import Image

from fbmem_core.errors import InputError
from fbmem_core.inputs.fetching import FetchLimits, fetch_pictures
from fbmem_core.inputs.packs import PACKS, fetch_pack, obtain_pack, reference_name, write_pack
from fbmem_core.inputs.prompts import read_prompts
from fbmem_core.inputs.references import read_references

LIMITS = FetchLimits(timeout=4.0, deadline=6.0, max_bytes=200_000, host_delay=0.0, allow_private=True)


def picture(seed):
    pixels = np.random.default_rng(seed).integers(0, 256, (24, 24, 3), dtype=np.uint8)
    return encoded(Image.fromarray(pixels))


def encoded(image):
    buffer = io.BytesIO()
    image.save(buffer, format="PNG")
    return buffer.getvalue()


class Handler(BaseHTTPRequestHandler):
    def log_message(self, *args):
        pass

    def do_GET(self):
        self.server.asked.append(self.path)
        name = self.path.strip("/").split("-")[0]
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            getattr(self, name)()

    def answer(self, content, kind="image/png", length=None):
        self.send_response(200)
        self.send_header("Content-Type", kind)
        if length != 0:
            self.send_header("Content-Length", str(length or len(content)))
        self.end_headers()
        self.wfile.write(content)

    def good(self):
        self.answer(picture(zlib.crc32(self.path.encode())))

    def gone(self):
        self.send_error(404)

    def silent(self):
        time.sleep(8)

    def dripping(self):
        self.answer(b"", length=100_000)
        for _ in range(40):
            self.wfile.write(b"x")
            self.wfile.flush()
            time.sleep(0.25)

    def endless(self):
        self.answer(b"", length=0)
        while True:
            self.wfile.write(bytes(65_536))

    def page(self):
        self.answer(b"<html>bought by someone else</html>", "text/html")

    def lying(self):
        self.answer(b"<html>bought by someone else</html>")

    def inward(self):
        self.send_response(302)
        self.send_header("Location", f"http://127.0.0.1:{self.server.server_port}/good-secret")
        self.end_headers()

    def circle(self):
        self.send_response(302)
        self.send_header("Location", self.path)
        self.end_headers()

    def cut(self):
        content = picture(1)
        self.answer(content[: len(content) // 2], length=len(content))
        self.close_connection = True

    def placeholder(self):
        self.answer(picture(5))

    def black(self):
        self.answer(encoded(Image.new("RGB", (64, 64))))


class Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False
    request_queue_size = 64

    def handle_error(self, request, client_address):
        pass


@pytest.fixture
def server(monkeypatch):
    for name in ("http_proxy", "https_proxy", "all_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    httpd = Server(("127.0.0.1", 0), Handler)
    httpd.asked = []
    thread = threading.Thread(target=httpd.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    yield httpd
    httpd.shutdown()
    httpd.server_close()


def url_of(server, name):
    return f"http://127.0.0.1:{server.server_port}/{name}"


def test_what_a_server_does_wrong_has_a_reason_of_its_own_and_ends_nothing(server, tmp_path):
    names = [
        "good-1", "gone", "silent", "dripping", "endless", "page", "lying", "circle", "cut", "black",
        "placeholder-1", "placeholder-2", "placeholder-3", "good-2",
    ]  # fmt: skip
    urls = [url_of(server, name) for name in names]
    outcomes = fetch_pictures([*urls, "ftp://a.example/1.png", "no address"], tmp_path / "pictures", LIMITS)
    assert {name: item.status for name, item in zip([*names, "ftp", "text"], outcomes, strict=True)} == {
        "good-1": "ok", "good-2": "ok", "gone": "http 404", "silent": "timeout", "dripping": "too slow",
        "endless": "too large", "page": "wrong type", "lying": "wrong type", "circle": "too many redirects",
        "cut": "truncated", "black": "single colour",
        "placeholder-1": "placeholder", "placeholder-2": "placeholder", "placeholder-3": "placeholder",
        "ftp": "bad url", "text": "bad url",
    }  # fmt: skip
    assert not list(tmp_path.rglob("*.partial"))


def test_private_addresses_are_not_asked(server, tmp_path):
    strict = replace(LIMITS, allow_private=False)
    [direct] = fetch_pictures([url_of(server, "good")], tmp_path / "a", strict)
    assert direct.status == "private address"
    assert server.asked == []


def test_a_redirect_to_a_private_address_is_not_followed(server, tmp_path, monkeypatch):
    # a name that stands for a public server: it is the local one, which is taken for public when it is first asked
    resolve = socket.getaddrinfo
    asked = []

    def public_at_first(host, port, *args, **kwargs):
        if host == "public.example":
            asked.append(host)
            family = (socket.AF_INET, socket.SOCK_STREAM, 6, "")
            is_check = len(asked) == 1
            return [(*family, ("93.184.215.14" if is_check else "127.0.0.1", port))]
        return resolve(host, port, *args, **kwargs)

    monkeypatch.setattr(socket, "getaddrinfo", public_at_first)
    strict = replace(LIMITS, allow_private=False)
    url = f"http://public.example:{server.server_port}/inward"
    [outcome] = fetch_pictures([url], tmp_path / "pictures", strict)
    assert outcome.status == "private address"
    assert server.asked == ["/inward"]


def test_a_fetch_that_was_stopped_goes_on_and_asks_again_only_what_may_have_changed(server, tmp_path):
    first = [url_of(server, name) for name in ("good-1", "gone", "silent")]
    fetch_pictures(first, tmp_path / "pictures", LIMITS)
    server.asked.clear()
    with (tmp_path / "pictures" / "fetched.jsonl").open("a") as file:
        file.write('{"url": "http://')  # as a kill leaves it
    outcomes = fetch_pictures([*first, url_of(server, "good-2")], tmp_path / "pictures", LIMITS)
    assert sorted(server.asked) == ["/good-2", "/silent"]
    assert [item.status for item in outcomes] == ["ok", "http 404", "timeout", "ok"]


@pytest.mark.parametrize(
    ("name", "kinds", "num_addresses"),
    [("webster-sd1", {"VM": 112, "TM": 388}, 500), ("nemo-unmemorized", {"non-memorized": 500}, 500)],
)
def test_the_shipped_packs_are_written_whole(tmp_path, name, kinds, num_addresses):
    pack = PACKS[name]
    written = write_pack(pack, obtain_pack(pack, tmp_path), tmp_path)
    assert (written.num_prompts, written.num_rejected) == (500, 0)
    prompts, rejected = read_prompts(tmp_path / "prompts.csv")
    assert rejected == []
    counts = [prompt.kind for prompt in prompts]
    assert {kind: counts.count(kind) for kind in set(counts)} == kinds
    with (tmp_path / "references.csv").open(newline="") as file:
        ids = {row["reference_id"] for row in csv.DictReader(file)}
    assert {name for prompt in prompts for name in prompt.reference_ids} == ids
    assert written.num_addresses == len(ids) <= num_addresses


MEMBENCH = (
    ",prompt,urls\n0,a rug,\"['https://a.example/1', 'https://a.example/2']\"\n1,a flag,['https://a.example/1']\n"
)
SD2 = """{"caption":"a floor","url":"https:\\/\\/a.example\\/1","index":5,"overfit_type":"TV"}
{"caption":"an oak","url":"https://a.example/3","index":6,"overfit_type":"MV"}"""
FILES = {
    "membench": ("a.csv", MEMBENCH),
    "sd2": ("a.jsonl", SD2),
    "realistic-vision": ("a.txt", "a podcast\nan icon"),
}


@pytest.mark.parametrize(
    ("name", "kinds", "references"),
    [
        ("membench", ["memorized", "memorized"], [[1, 2], [1]]),
        ("sd2", ["TV", "MV"], [[1], [3]]),
        ("realistic-vision", ["memorized", "memorized"], [[], []]),
    ],
)
def test_files_of_the_form_that_authors_publish_are_written_as_packs(tmp_path, name, kinds, references):
    file_name, content = FILES[name]
    file = tmp_path / file_name
    file.write_text(content)
    write_pack(replace(PACKS[name], num_prompts=2), file, tmp_path / "pack")
    prompts, _ = read_prompts(tmp_path / "pack" / "prompts.csv")
    assert [prompt.kind for prompt in prompts] == kinds
    expected = [tuple(reference_name(f"https://a.example/{number}") for number in numbers) for numbers in references]
    assert [prompt.reference_ids for prompt in prompts] == expected


def test_another_file_than_the_frozen_one_is_refused(tmp_path):
    (tmp_path / "a.csv").write_text("prompt\na cat\n")
    with pytest.raises(InputError, match=r"the file with SHA-256 8c41867a67ea184c\.\.\., but got .* in .*a\.csv"):
        obtain_pack(PACKS["membench"], tmp_path, source=tmp_path / "a.csv")
    with pytest.raises(InputError, match="Expected 500 prompts, but got 1 "):
        write_pack(PACKS["webster-sd1"], tmp_path / "a.csv", tmp_path)


def test_a_fetched_pack_says_how_many_prompts_have_no_picture(server, tmp_path):
    (tmp_path / "prompts.csv").write_text("prompt,reference_ids\na cat,a\na dog,b;c\na cow,b\n")
    rows = [("a", "good-1"), ("b", "gone"), ("c", "good-3")]
    lines = [f"{name},,,{url_of(server, path)}" for name, path in rows]
    (tmp_path / "references.csv").write_text("\n".join(["reference_id,path,caption,url", *lines]) + "\n")
    availability = fetch_pack(tmp_path, LIMITS)
    assert availability.statuses == {"ok": 2, "http 404": 1}
    assert (availability.num_prompts, availability.num_with_picture) == (3, 2)
    assert {item.reference_id: item.status for item in read_references(tmp_path)} == {
        "a": "ok", "b": "missing", "c": "ok",
    }  # fmt: skip
