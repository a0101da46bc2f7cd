"""A proxy that forwards requests to the server under test and cuts connections as it is told."""

import contextlib
import http.client
import socket
import struct
import threading
import urllib.parse
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from . import server

# What becomes of a request: it and its answer pass; it never arrives; it is done, and its answer is lost; the same, but half
# of the answer arrives.
PASS, LOSE_REQUEST, LOSE_ANSWER, LOSE_HALF = "pass", "lose request", "lose answer", "lose half"


class Proxy(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 64

    def __init__(self, fates):
        super().__init__(("127.0.0.1", 0), Handler)
        self.fates = list(fates)
        self.seen = []
        self.lock = threading.Lock()

    @property
    def url(self):
        return f"http://127.0.0.1:{self.server_port}/v1"

    def fate(self, method, headers):
        """What becomes of the next request; after those that were told, all pass."""
        with self.lock:
            fate = self.fates.pop(0) if self.fates else PASS
            self.seen.append((method, headers.get("x-stainless-retry-count"), fate))
            return fate

    def handle_error(self, request, client_address):
        """A client that is gone is what is wanted here."""


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    # Else small answers wait for the acknowledgement of their heads.
    disable_nagle_algorithm = True

    def log_message(self, *_):
        """The checks speak for themselves."""

    def forward(self):
        body = self.rfile.read(int(self.headers.get("content-length") or 0))
        fate = self.server.fate(self.command, self.headers)
        if fate == LOSE_REQUEST:
            return self.reset()
        target = urllib.parse.urlsplit(server.URL)
        upstream = http.client.HTTPConnection(target.hostname, target.port, timeout=60)
        with contextlib.closing(upstream):
            headers = {name: value for name, value in self.headers.items() if name.lower() not in ("host", "connection")}
            # `http.client` would ask for an encoding of its own.
            headers.setdefault("Accept-Encoding", "identity")
            upstream.request(self.command, self.path, body or None, headers)
            answer = upstream.getresponse()
            content = answer.read()
        if fate == LOSE_ANSWER:
            return self.reset()
        self.send_response_only(answer.status)
        for name, value in answer.getheaders():
            if name.lower() not in ("connection", "transfer-encoding", "content-length"):
                self.send_header(name, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if fate == LOSE_HALF:
            self.wfile.write(content[: len(content) // 2])
            self.wfile.flush()
            return self.reset()
        self.wfile.write(content)
        return None

    do_GET = do_POST = do_DELETE = do_PATCH = forward

    def reset(self):
        """Ends the connection the hard way."""
        self.close_connection = True
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        # The files of the handler keep the socket open otherwise.
        self.rfile.close()
        self.connection.close()


@contextlib.contextmanager
def proxy(*fates):
    """A proxy for which these fates are told, first come first served."""
    with Proxy(fates) as it:
        thread = threading.Thread(target=it.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
        thread.start()
        try:
            yield it
        finally:
            it.shutdown()
            thread.join()
