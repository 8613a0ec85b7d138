"""Servers that W&B may meet, on loopback, and what W&B's own files hold."""

import gzip
import json
import struct
import threading
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

_BLOCK = 32768
MISBEHAVIOURS = ("hangs", "closes", "500", "403")


@contextmanager
def misbehaving_server(how: str) -> Iterator[tuple[str, list[str]]]:
    """Serves while the block runs; yields the address and the paths that were asked for."""
    asked: list[str] = []
    leave = threading.Event()

    class Handler(BaseHTTPRequestHandler):
        def answer(self) -> None:
            asked.append(self.path)
            if how == "hangs":
                leave.wait()
            elif how != "closes":
                self.send_response(int(how))
                self.end_headers()

        do_GET = do_POST = do_PUT = answer  # noqa: N815 - names of http.server

        def log_message(self, *_) -> None:
            """Nothing on the screen."""

    with _serving(Handler) as url:
        try:
            yield url, asked
        finally:
            leave.set()


@contextmanager
def wandb_server() -> Iterator[tuple[str, dict[str, list[dict]]]]:
    """Serves as much of W&B as runs need to be logged and resumed; yields the address and the history of each run."""
    history: dict[str, list[dict]] = defaultdict(list)

    def answer(operation: str, variables: dict) -> dict:
        name = variables.get("name") or ""
        project = {"id": "p", "name": "loupe", "entity": {"id": "e", "name": "me"}}
        bucket = {"id": name, "name": name, "displayName": name, "config": "{}", "summaryMetrics": "{}"}
        if operation == "Viewer":
            return {"viewer": {"id": "v", "entity": "me", "username": "me", "flags": "{}", "teams": {"edges": []}}}
        if operation == "RunResumeStatus":
            lines, counts = history[name], {"logLineCount": 0, "eventsLineCount": 0}
            tails = {"historyTail": json.dumps([json.dumps(one) for one in lines[-1:]]), "eventsTail": "[]"}
            counts["historyLineCount"] = len(lines)
            known = bucket | counts | tails | {"tags": [], "notes": "", "wandbConfig": '{"t": 1}'}
            return {"model": project | {"bucket": known if lines else None}}
        if operation == "UpsertBucket":
            return {"upsertBucket": {"bucket": bucket | {"project": project}, "inserted": not history[name]}}
        if operation == "CreateRunFiles":
            return {"createRunFiles": {"runID": variables["run"], "uploadHeaders": [], "files": []}}
        return {}

    class Handler(BaseHTTPRequestHandler):
        def answer(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            if self.headers.get("Content-Encoding") == "gzip":
                body = gzip.decompress(body)
            reply: dict = {}
            if self.path == "/graphql":
                asked = json.loads(body)
                data = answer(asked["operationName"], asked.get("variables") or {})
                reply = {"data": data} if data else {"errors": [{"message": "unknown here"}]}
            elif self.path.endswith("/file_stream"):
                lines = json.loads(body).get("files", {}).get("wandb-history.jsonl", {}).get("content", [])
                history[self.path.split("/")[-2]] += map(json.loads, lines)
            content = json.dumps(reply).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        do_GET = do_POST = do_PUT = answer  # noqa: N815 - names of http.server

        def log_message(self, *_) -> None:
            """Nothing on the screen."""

    with _serving(Handler) as url:
        yield url, history


@contextmanager
def _serving(handler: type[BaseHTTPRequestHandler]) -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def read_offline(path: Path) -> dict[str, list]:
    """Returns what a `.wandb` file holds: history rows, summaries, runs and artifacts, in order."""
    from wandb.proto import wandb_internal_pb2

    found: dict[str, list] = {"history": [], "summary": [], "artifact": [], "run": []}
    for data in _records(path.read_bytes()):
        record = wandb_internal_pb2.Record()
        record.ParseFromString(data)
        kind = record.WhichOneof("record_type")
        if kind in ("history", "summary"):
            items = record.history.item if kind == "history" else record.summary.update
            found[kind].append({"/".join(item.nested_key) or item.key: json.loads(item.value_json) for item in items})
        elif kind == "artifact":
            found[kind].append(record.artifact)
        elif kind == "run":
            found[kind].append(record.run)
    return found


def _records(content: bytes) -> Iterator[bytes]:
    """Yields the records of a log in LevelDB's format after W&B's header of 7 bytes: blocks of 32 KiB, in which each
    piece has a checksum (4 bytes), a length (2) and whether it is whole, first, in the middle or last (1).
    """
    place, record = 7, b""
    while place < len(content):
        if _BLOCK - place % _BLOCK < 7:  # padding
            place += _BLOCK - place % _BLOCK
        length, kind = struct.unpack("<HB", content[place + 4 : place + 7])
        record += content[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (1, 4):
            yield record
            record = b""
