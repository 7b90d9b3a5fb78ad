"""A folder over HTTP, for tests of what does not lie here."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar

__all__ = ["Files", "new_handler", "serving"]


class Files(SimpleHTTPRequestHandler):
    """A folder, as any server shows it; byte ranges and dropped connections where a test asks for them."""

    ranges = False
    drops: ClassVar[list[int]] = []  # after how many bytes each of the next answers breaks off
    asked: ClassVar[list[tuple[str, str]]] = []
    signature = ""  # the query that each request must have
    statuses: ClassVar[dict[str, list[int]]] = {}  # by the end of a path, those of its next answers

    def do_HEAD(self) -> None:
        if not self._refused():
            super().do_HEAD()

    def _refused(self) -> bool:
        path, _, query = self.path.partition("?")
        if query != (self.signature or query):
            self.send_error(403)
            return True
        found = next((statuses for end, statuses in self.statuses.items() if path.endswith(end) and statuses), None)
        if found:
            self.send_error(found.pop(0))
        return found is not None

    def do_GET(self) -> None:
        if self._refused():
            return
        type(self).asked.append((self.path.partition("?")[0], self.headers.get("Range") or ""))
        path = Path(self.translate_path(self.path))
        if not path.is_file():
            super().do_GET()
            return
        content = path.read_bytes()
        begin, end, status = 0, len(content), 200
        if self.ranges and (asked := self.headers.get("Range")):
            first, _, last = asked.removeprefix("bytes=").partition("-")
            begin, end, status = int(first), min(int(last) + 1, end) if last else end, 206
        self.send_response(status)
        self.send_header("Content-Length", str(end - begin))
        if status == 206:
            self.send_header("Content-Range", f"bytes {begin}-{end - 1}/{len(content)}")
        self.end_headers()
        part = content[begin:end]
        drop = type(self).drops.pop(0) if type(self).drops else len(part)
        self.wfile.write(part[:drop])
        self.close_connection = drop < len(part)

    def end_headers(self) -> None:
        if self.ranges:
            self.send_header("Accept-Ranges", "bytes")
        super().end_headers()

    def log_message(self, *_: Any) -> None:
        pass


def new_handler() -> type[Files]:
    """With drops and a record of its own."""
    return type("Handler", (Files,), {"drops": [], "asked": [], "statuses": {}})


@contextmanager
def serving(folder: Path, handler: type[Files]) -> Iterator[str]:
    """URL of the folder."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(handler, directory=str(folder)))
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()
