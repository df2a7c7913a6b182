"""A wire between a store and its server on which things go wrong."""

from __future__ import annotations

import http.client
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

TRICKLE = 20
"""Pieces in which a slow answer comes, 50 ms apart."""


@dataclass
class Wire:
    """A proxy that records requests and spoils some.

    :meth:`spoil` sets what happens to the next requests with that method, one after the other:

    ======== ==========================================================================================
    pass     nothing
    lose     the server does as it is asked, its answer is lost
    cut      half of the answer's body comes, then the connection ends
    reset    half of the answer's body comes, then the connection is reset
    break    half of the request's body reaches the server, then both connections are reset
    short    half of the answer's body comes, as if it were all
    slow     the answer's body comes in a trickle
    flip     a bit of the answer's body changes
    tamper   a bit of the request's body changes
    refuse   403
    a number that status, without asking the server
    ======== ==========================================================================================
    """

    server: str
    requests: list[tuple[str, str, dict[str, str]]] = field(default_factory=list)
    spoiled: dict[str, list[str]] = field(default_factory=dict)
    fetched: int = 0
    """Bytes of the server's answers."""
    down: str = ""
    """What happens to every request that is not spoiled."""
    first: Callable[[], object] | None = None
    """Done once, before the next request that writes reaches the server."""
    lock: threading.Lock = field(default_factory=threading.Lock)

    def spoil(self, method: str, *how: str) -> None:
        self.spoiled[method] = list(how)

    def asked(self, method: str, text: str) -> list[dict[str, str]]:
        """Headers of the requests with ``text`` in their path."""
        return [headers for verb, path, headers in self.requests if verb == method and text in path]

    @contextmanager
    def open(self) -> Iterator[str]:
        """Serve, and give the address."""
        wire = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def handle_any(self) -> None:
                wire.answer(self)

            do_GET = do_PUT = do_POST = do_HEAD = do_DELETE = handle_any  # noqa: N815

            def log_message(self, *_: object) -> None:
                pass

        class Proxy(ThreadingHTTPServer):
            daemon_threads = True
            request_queue_size = 64

            def handle_error(self, *_: object) -> None:
                pass  # a client that hangs up

        with Proxy(("127.0.0.1", 0), Handler) as proxy:
            threading.Thread(target=proxy.serve_forever, daemon=True).start()
            yield f"http://127.0.0.1:{proxy.server_address[1]}"
            proxy.shutdown()

    def answer(self, handler: BaseHTTPRequestHandler) -> None:
        body = handler.rfile.read(int(handler.headers.get("Content-Length", 0)))
        how = self._draw(handler)
        if how == "refuse" or how.isdigit():
            handler.send_error(int(how) if how.isdigit() else 403)
        elif how == "break":
            self._send_half(handler, body)
            _reset(handler)
        else:
            answer, content = self._forward(handler, _flipped(body) if how == "tamper" else body)
            with self.lock:
                self.fetched += len(content)
            _give(handler, answer, content, how)

    def _draw(self, handler: BaseHTTPRequestHandler) -> str:
        with self.lock:
            headers = {name.lower(): value for name, value in handler.headers.items()}
            self.requests.append((handler.command, handler.path, headers))
            waiting = self.spoiled.get(handler.command)
            how = waiting.pop(0) if waiting else self.down
            first = self.first
            if handler.command in ("PUT", "POST"):
                self.first = None
                if first is not None:
                    first()
            return how

    def _connect(self) -> http.client.HTTPConnection:
        return http.client.HTTPConnection(self.server.removeprefix("http://"), timeout=30)

    def _forward(
        self, handler: BaseHTTPRequestHandler, body: bytes
    ) -> tuple[http.client.HTTPResponse, bytes]:
        connection = self._connect()
        connection.request(handler.command, handler.path, body, dict(handler.headers))
        answer = connection.getresponse()
        content = answer.read()
        connection.close()
        return answer, content

    def _send_half(self, handler: BaseHTTPRequestHandler, body: bytes) -> None:
        connection = self._connect()
        connection.putrequest(handler.command, handler.path, skip_host=True, skip_accept_encoding=True)
        for name, value in handler.headers.items():
            connection.putheader(name, value)
        connection.endheaders(body[: len(body) // 2])
        time.sleep(0.05)  # for the server to take it in
        _close_hard(connection.sock)


def _give(
    handler: BaseHTTPRequestHandler, answer: http.client.HTTPResponse, content: bytes, how: str
) -> None:
    if how == "lose":
        handler.close_connection = True
        return
    if how == "flip":
        content = _flipped(content)
    if how == "short":
        content = content[: len(content) // 2]
    length = len(content)
    if handler.command == "HEAD":
        length = int(answer.headers.get("Content-Length", 0))
    handler.send_response_only(answer.status)
    for name, value in answer.headers.items():
        if name.lower() not in {"transfer-encoding", "content-length"}:
            handler.send_header(name, value)
    handler.send_header("Content-Length", str(length))
    handler.end_headers()
    if how in ("cut", "reset"):
        handler.wfile.write(content[: length // 2])
        handler.close_connection = True
        if how == "reset":
            _reset(handler)
    elif how == "slow":
        step = -(-length // TRICKLE) or 1
        for start in range(0, length, step):
            handler.wfile.write(content[start : start + step])
            time.sleep(0.05)
    else:
        handler.wfile.write(content)


def _flipped(content: bytes) -> bytes:
    """One bit in the middle changed, where the bytes of an object stand and not what frames them."""
    middle = len(content) // 2
    return content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]


def _reset(handler: BaseHTTPRequestHandler) -> None:
    handler.close_connection = True
    _close_hard(handler.connection)


def _close_hard(connection: socket.socket) -> None:
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    connection.close()
