"""An OpenAI-compatible server on this machine that answers as a test tells it to."""

import json
import math
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any

Answer = Callable[[dict[str, Any]], dict[str, Any]]
"""From the body of a request to one choice of the reply."""


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
    """Serve chat completions; an ``answer`` that raises ValueError is a bad request."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            fake.requests.append({**body, "key": self.headers["Authorization"], "at": self.path})
            try:
                status, content = 200, _completion(body["model"], answer(body))
            except ValueError as error:
                status, content = 400, {"error": {"message": str(error), "type": "bad"}}
            data = json.dumps(content).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *_: object) -> None:
            """Say nothing."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        fake = FakeEndpoint(f"http://127.0.0.1:{server.server_port}/v1")
        thread = Thread(target=server.serve_forever, daemon=True)
        thread.start()
        try:
            yield fake
        finally:
            server.shutdown()
            thread.join()


def _completion(model: str, choice: dict[str, Any]) -> dict[str, Any]:
    head = {"id": "1", "object": "chat.completion", "created": 0, "model": model}
    return {**head, "choices": [choice]}
