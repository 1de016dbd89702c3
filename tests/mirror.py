"""A file server on this machine, which can break off, forget and lie."""

import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class Mirror(ThreadingHTTPServer):
    """Notes what it was asked for; ``cuts`` are the bytes after which connections for the file ``breaks`` break."""

    def __init__(self, files: dict[str, bytes], breaks: str):
        super().__init__(("127.0.0.1", 0), Handler)
        self.files, self.breaks, self.cuts, self.asked, self.ranges = dict(files), breaks, [], [], True

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/sets/"


class Handler(BaseHTTPRequestHandler):
    server: Mirror

    def do_GET(self):
        name, asked = self.path.removeprefix("/sets/"), self.headers.get("Range")
        self.server.asked.append((name, asked))
        content = self.server.files.get(name)
        if content is None:
            return self.send_error(404)
        first = int(re.fullmatch(r"bytes=(\d+)-", asked)[1]) if asked and self.server.ranges else 0
        if first and first >= len(content):
            return self.send_error(416)
        self.send_response(206 if first else 200)
        if first:
            self.send_header("Content-Range", f"bytes {first}-{len(content) - 1}/{len(content)}")
        self.send_header("Content-Length", str(len(content) - first))
        self.end_headers()
        left = self.server.cuts.pop(0) if self.server.cuts and name == self.server.breaks else len(content)
        self.wfile.write(content[first : first + left])

    def log_message(self, *_):
        """Silence."""


@contextmanager
def serving(files: dict[str, bytes], breaks: str = "") -> Iterator[Mirror]:
    """A mirror that serves until the block ends."""
    with Mirror(files, breaks) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()
