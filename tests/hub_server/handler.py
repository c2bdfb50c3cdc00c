"""Requests in, answers out: the body is read, faults happen, then a route of `reading` or `writing` answers."""

import json
from http.server import BaseHTTPRequestHandler
from threading import Event
from urllib.parse import parse_qs, unquote, urlsplit

from .reading import Reading
from .writing import Writing

CHUNK = 16 << 10  # bytes read at once


class Handler(Reading, Writing, BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def do_HEAD(self):
        self._answer(self.read)

    def do_GET(self):
        self._answer(self.read)

    def do_POST(self):
        self._answer(self.write)

    def do_PUT(self):
        self._answer(self.write)

    def _answer(self, route):
        self.path_only = unquote(urlsplit(self.path).path)
        self.query = {name: values[0] for name, values in parse_qs(urlsplit(self.path).query).items()}
        request = f"{self.command} {self.path_only}"
        self.server.requests.append(request)
        fault = self.server.fault_for(request)
        if fault and fault.before:
            fault.before()
        self.body = self._body(fault)
        if self.body is None:
            return None
        if fault and fault.status:
            return self.error(fault.status, "", fault.headers)
        self.answers_lost = bool(fault and fault.lost)
        return route()

    def _body(self, fault):
        """All of the request's body; None where the connection was closed before its end."""
        received = b""
        for chunk in self._chunks():
            received += chunk
            if fault and fault.delay:
                Event().wait(fault.delay)  # a test may have made sleep() do nothing
            if fault and fault.cut is not None and len(received) >= fault.cut:
                self.close_connection = True
                self.connection.close()
                return None
        return received

    def _chunks(self):
        if self.headers.get("Transfer-Encoding") == "chunked":
            while size := int(self.rfile.readline(), 16):
                yield self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
            return
        left = int(self.headers.get("Content-Length", 0))
        while left:
            chunk = self.rfile.read(min(CHUNK, left))
            left -= len(chunk)
            yield chunk

    def json(self, content, status=200):
        if getattr(self, "answers_lost", False):
            return self.error(500, "")
        data = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        return self.wfile.write(data)

    def error(self, status, code, headers=None, message=None):
        data = json.dumps({"error": message or code}).encode() if self.command not in ("HEAD", "GET") else b""
        self.send_response(status)
        if code:
            self.send_header("X-Error-Code", code)
        self.send_header("X-Error-Message", message or code)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)
