"""An OpenAI-compatible server on this machine that answers as a test tells it to."""

import json
import math
import shutil
import socket
import struct
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any

from personality_vector.lab import cache_folder

USAGE = {"prompt_tokens": 100, "completion_tokens": 1}
"""What every answer is said to have taken."""

Answer = Callable[[dict[str, Any]], dict[str, Any]]
"""From the body of a request to one choice of the reply."""


@dataclass
class Fault(Exception):  # noqa: N818  (a fault of the server, not of a test)
    """What an ``answer`` raises to be a server that fails.

    Attributes:
        status: Of the response.
        body: JSON, or bytes as they are.
        headers: Further ones.
        seconds: To wait before it answers.
        sent: Share of the body that is sent before the connection is closed.
        resets: Close the connection without a word.
    """

    status: int = 200
    body: Any = b"{}"
    headers: dict[str, str] = field(default_factory=dict)
    seconds: float = 0.0
    sent: float = 1.0
    resets: bool = False

    def send(self, handler: BaseHTTPRequestHandler) -> None:
        data = self.body if isinstance(self.body, bytes) else json.dumps(self.body).encode()
        time.sleep(self.seconds)
        handler.close_connection = self.resets or self.sent < 1 or self.seconds > 0
        if self.resets:
            linger = struct.pack("ii", 1, 0)
            handler.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
            handler.connection.close()
            return
        handler.send_response(self.status)
        for name, value in {"Content-Type": "application/json", **self.headers}.items():
            handler.send_header(name, value)
        handler.send_header("Content-Length", str(len(data)))
        handler.end_headers()
        handler.wfile.write(data[: int(len(data) * self.sent)])


def failed(status: int, message: str, code: str | None = None, **headers: str) -> Fault:
    """Return a response with an error in it."""
    error = {"message": message, "type": "bad", "code": code}
    names = {name.replace("_", "-"): value for name, value in headers.items()}
    return Fault(status, {"error": error}, names)


@dataclass
class FakeEndpoint:
    """Where it listens, and what it was asked."""

    base_url: str
    requests: list[dict[str, Any]] = field(default_factory=list)


def likely(probabilities: dict[str, float]) -> dict[str, Any]:
    """Return a choice of one token with these probabilities."""
    top = [
        {"token": token, "logprob": math.log(p), "bytes": None}
        for token, p in probabilities.items()
    ]
    content = [{**top[0], "top_logprobs": top}]
    return {**said(top[0]["token"]), "logprobs": {"content": content, "refusal": None}}


def said(text: str, finish_reason: str = "stop") -> dict[str, Any]:
    """Return a choice that says ``text``."""
    message = {"role": "assistant", "content": text, "refusal": None}
    return {"index": 0, "finish_reason": finish_reason, "message": message, "logprobs": None}


@contextmanager
def serving(answer: Answer) -> Generator[FakeEndpoint]:
    """Serve chat completions; an ``answer`` that raises ValueError is a bad request.

    No response of an earlier server is in the cache, since a port may be used again.
    """
    shutil.rmtree(cache_folder("endpoint"), ignore_errors=True)

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            fake.requests.append({**body, "key": self.headers["Authorization"], "at": self.path})
            try:
                found = Fault(body=_completion(body["model"], answer(body)))
            except ValueError as error:
                found = failed(400, str(error))
            except Fault as fault:
                found = fault
            with suppress(OSError):  # whoever asked may be gone
                found.send(self)

        def log_message(self, *_: object) -> None:
            """Say nothing."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        fake = FakeEndpoint(f"http://127.0.0.1:{server.server_port}/v1")
        thread = Thread(target=server.serve_forever, args=(0.02,), daemon=True)
        thread.start()
        try:
            yield fake
        finally:
            server.shutdown()
            thread.join()


def _completion(model: str, choice: dict[str, Any]) -> dict[str, Any]:
    head = {"id": "1", "object": "chat.completion", "created": 0, "model": model}
    return {**head, "choices": [choice], "usage": USAGE}
