"""`fbmem review`: people's verdicts on findings, from a local page or a CSV file."""

from __future__ import annotations

import secrets
import urllib.parse
from functools import partial
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from fbmem_assets.commands.neurons import one_partition
from fbmem_assets.orchestration.resources import store_option
from fbmem_core.errors import InputError

if TYPE_CHECKING:
    from fbmem_core.store.tables import Store

_MAX_BYTES = 100_000


@click.command()
@click.option("--partition", help="Of which audited checkpoint; needed where the store holds several.")
@click.option("--csv", "file", type=click.Path(path_type=Path, dir_okay=False), help="Read verdicts from a table.")
@click.option("--port", type=click.IntRange(0, 65535), default=8765, show_default=True)
@store_option
def review(partition: str | None, file: Path | None, port: int, store: str) -> None:
    """Give verdicts on findings: confirmed, rejected or unclear, with a name and a comment.

    Opens a page that this machine alone can reach, or reads FILE. Verdicts are rows of the table `reviews`; no label
    changes by them.
    """
    from fbmem_core.report.reviews import read_reviews
    from fbmem_core.store.tables import Store

    tables = Store(store)
    key = one_partition(tables, "audit_settings", partition)
    if file is not None:
        click.echo(f"{read_reviews(tables, key, file)} verdicts of {file} are kept for {key}")
        return
    server = review_server(tables, key, port)
    click.echo(f"review of {key}: http://127.0.0.1:{server.server_port}/ (Ctrl-C ends it)")
    try:
        server.serve_forever()
    except KeyboardInterrupt:
        click.echo("ended", err=True)
    finally:
        server.server_close()


def review_server(store: Store, checkpoint: str, port: int) -> HTTPServer:
    """The server of the page, which this machine alone can reach."""
    handler = partial(_Handler, store, checkpoint, secrets.token_urlsafe(24))
    try:
        return HTTPServer(("127.0.0.1", port), handler)
    except OSError as error:
        raise InputError("a free port", f"{port}: {error.strerror}", cure="Give another --port.") from None


class _Handler(BaseHTTPRequestHandler):
    """Shows the page, and takes only forms that it wrote itself."""

    def __init__(self, store: Store, checkpoint: str, token: str, *args: Any) -> None:
        self.audited, self.token = (store, checkpoint), token
        super().__init__(*args)

    def do_GET(self) -> None:
        """The page."""
        if self._is_local():
            self._answer(200, self._page())

    def do_POST(self) -> None:
        """Keep one verdict and show the page again."""
        if not self._is_local():
            return
        length = min(int(self.headers.get("Content-Length") or 0), _MAX_BYTES)
        fields = urllib.parse.parse_qs(self.rfile.read(length).decode("utf-8", "replace"))
        values = {name: given[0] for name, given in fields.items()}
        if not secrets.compare_digest(values.get("token", ""), self.token):
            self._answer(403, "<p>Open the page again.</p>")
            return
        self._answer(200, self._page(self._keep(values), values.get("reviewer", "")))

    def log_message(self, format: str, *args: object) -> None:
        """Nothing is printed for a request."""

    def _is_local(self) -> bool:
        """True if the page is requested by this machine's own name, which no other page can do."""
        if (self.headers.get("Host") or "").rpartition(":")[0] in ("127.0.0.1", "localhost"):
            return True
        self._answer(403, "<p>This page is for this machine alone.</p>")
        return False

    def _keep(self, values: dict[str, str]) -> str:
        from fbmem_core.report.reviews import write_review

        given = {name: values.get(name, "") for name in ("prompt_id", "reviewer", "verdict", "comment")}
        try:
            write_review(*self.audited, **given)  # type: ignore[arg-type]  # its last four arguments
        except InputError as error:
            return str(error)
        return f"Kept: {given['prompt_id']} is {given['verdict']} by {given['reviewer']}."

    def _page(self, message: str = "", reviewer: str = "") -> str:
        from fbmem_core.report.evidence import gather
        from fbmem_core.report.page import render_review

        evidence = gather(*self.audited)
        return render_review(self.audited[0], evidence, token=self.token, message=message, reviewer=reviewer)

    def _answer(self, status: int, body: str) -> None:
        content = body.encode()
        self.send_response(status)
        self.send_header("Content-Type", "text/html; charset=utf-8")
        self.send_header("Content-Length", str(len(content)))
        self.send_header("Content-Security-Policy", "default-src 'none'; img-src data:; style-src 'unsafe-inline'")
        self.end_headers()
        self.wfile.write(content)
