"""An HTTP server on loopback: what a :class:`~kubealign.ui.site.Site` answers to this machine's browsers."""

from __future__ import annotations

import re
import sys
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from kubealign.ui.site import Reply, Site
from kubealign_components.errors import ConfigError

HOST = "127.0.0.1"
_OURS = re.compile(r"(localhost|127\.0\.0\.1|\[::1\])(:\d{1,5})?", re.IGNORECASE)
"""Names by which a browser reaches loopback. Another one leads here only if somebody's DNS answer says so,
and a page of that name must read nothing here (DNS rebinding)."""
_POLICY = (
    "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; connect-src 'self'; "
    "form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
)
_HEADERS = {
    "Content-Type": "text/html; charset=utf-8",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
}


class Server(ThreadingHTTPServer):
    """Serves a folder of runs.

    Args:
        folder: an output folder, or a folder of those.
        port: 0 for any that is free.

    Raises:
        ConfigError: the port cannot be had.
    """

    daemon_threads = True

    def __init__(self, folder: Path, port: int) -> None:
        self.site = Site(folder)
        try:
            super().__init__((HOST, port), _Handler)
        except OSError as error:
            raise ConfigError("--port", port, f"a free port, or 0 for any ({error.strerror})") from error

    @property
    def address(self) -> str:
        """For the browser."""
        return f"http://{HOST}:{self.server_port}/"

    def handle_error(self, request: object, client_address: object) -> None:
        """Tell what nobody expected; a browser that went away before it had all is no such thing."""
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)  # type: ignore[arg-type]


class _Handler(BaseHTTPRequestHandler):
    """One connection."""

    protocol_version = "HTTP/1.1"
    server_version, sys_version = "KubeAlign", ""
    timeout = 30
    server: Server

    def do_GET(self) -> None:
        """Answer with a page."""
        if not _OURS.fullmatch(self.headers.get("Host", "")):
            self._send(Reply(status=HTTPStatus.FORBIDDEN, body=b"Asked for by another host's name"))
        else:
            self._send(self.server.site.reply(self.path))

    def do_HEAD(self) -> None:
        """Answer with a page's headers."""
        self.do_GET()

    def do_POST(self) -> None:
        """Refuse: nothing here can be changed."""
        self.close_connection = True  # what it sent is not read
        self._send(Reply(status=HTTPStatus.METHOD_NOT_ALLOWED, body=b"These pages can be read only"))

    do_PUT = do_PATCH = do_DELETE = do_OPTIONS = do_POST  # noqa: N815

    def log_message(self, format: str, *args: object) -> None:
        """Write nothing."""

    def _send(self, reply: Reply) -> None:
        self.send_response(reply.status)
        for name, value in _HEADERS.items():
            self.send_header(name, value)
        self.send_header("Content-Security-Policy", "; ".join(filter(None, (_POLICY, reply.policy))))
        self.send_header("Content-Length", str(len(reply.body)))
        if reply.location:
            self.send_header("Location", reply.location)
        if reply.status == HTTPStatus.METHOD_NOT_ALLOWED:
            self.send_header("Allow", "GET, HEAD")
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(reply.body)
