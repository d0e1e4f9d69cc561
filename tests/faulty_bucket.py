"""A small S3 server in memory that fails on request, for tests of what clients ride out."""

import contextlib
import http.server
import random
import re
import socket
import struct
import threading
import time
from urllib.parse import parse_qs, urlsplit

_RESET = struct.pack("ii", 1, 0)  # SO_LINGER: closing a connection resets it


class FaultyBucket:
    """The bucket `stores`.

    Attributes:
        objects: the content by key.
        log: method and key of every request that was answered without a fault.
        fault: called with every request; returns whether it has dealt with it.
        access_key: the only one whose requests are answered; other ones have expired.
    """

    def __init__(self):
        self.objects, self.log, self.parts = {}, [], {}
        self.fault = lambda request: False
        self.access_key = None
        self.closing = threading.Event()
        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
        self._server.bucket, self._server.daemon_threads, self._server.block_on_close = self, True, False
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    @contextlib.contextmanager
    def serve(self):
        thread = threading.Thread(target=self._server.serve_forever, args=(0.05,))
        thread.start()
        try:
            yield self
        finally:
            self.closing.set()
            self._server.shutdown()
            thread.join()
            self._server.server_close()

    def slow_down(self, seconds):
        """Answer every request with 503 SlowDown for a time that starts now."""
        end = time.monotonic() + seconds
        self.fault = lambda request: time.monotonic() < end and request.refuse(503, "SlowDown")

    def fail_randomly(self, share, seed=0):
        """Answer a share of the requests with 500 or 503, by resetting the connection, or with half of the content."""
        rng, lock = random.Random(seed), threading.Lock()

        def fault(request):
            with lock:
                fails, kind = rng.random() < share, rng.choice(["500", "503", "reset", "half"])
            if not fails:
                return False
            if kind == "reset" or (kind == "half" and (request.command != "GET" or request.key not in self.objects)):
                return request.reset()
            return request.answer_half() if kind == "half" else request.refuse(int(kind), "InternalError")

        self.fault = fault

    def say_nothing(self):
        """Accept connections and never answer."""
        self.fault = lambda request: self.closing.wait() or request.reset()

    def stall(self):
        """Answer with headers and half of the content, then nothing."""
        self.fault = lambda request: request.answer_half(then=self.closing.wait)


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *arguments):
        pass

    def _handle(self):
        bucket = self.server.bucket
        parts = urlsplit(self.path)
        self.key, self.query = parts.path.removeprefix("/stores/"), parse_qs(parts.query, keep_blank_values=True)
        self.body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if bucket.fault(self):
            return
        key = re.search(r"Credential=(\w+)/", self.headers.get("Authorization", ""))
        if bucket.access_key and (key is None or key[1] != bucket.access_key):
            self.refuse(400, "ExpiredToken")
            return
        bucket.log.append((self.command, self.key))
        getattr(self, f"_{self.command.lower()}")(bucket)

    do_GET = do_HEAD = do_PUT = do_POST = _handle  # noqa: N815

    def _get(self, bucket):
        if self.key not in bucket.objects:
            self.refuse(404, "NoSuchKey")
            return
        status, headers, data = self._content()
        self.answer(status, data, headers)

    _head = _get

    def _put(self, bucket):
        if "uploadId" in self.query:
            bucket.parts.setdefault(self.query["uploadId"][0], {})[int(self.query["partNumber"][0])] = self.body
        else:
            bucket.objects[self.key] = self.body
        self.answer(200, b"", {"ETag": '"etag"'})

    def _post(self, bucket):
        if "delete" in self.query:
            keys = re.findall(r"<Key>(.*?)</Key>", self.body.decode())
            for key in keys:
                bucket.objects.pop(key, None)
            self._answer_xml(200, "DeleteResult", "".join(f"<Deleted><Key>{key}</Key></Deleted>" for key in keys))
            return
        if "uploads" in self.query:
            name = f"upload-{len(bucket.log)}"
            self._answer_xml(200, "InitiateMultipartUploadResult", f"<UploadId>{name}</UploadId>")
            return
        parts = bucket.parts[self.query["uploadId"][0]]
        bucket.objects[self.key] = b"".join(parts[number] for number in sorted(parts))
        self._answer_xml(200, "CompleteMultipartUploadResult", "<ETag>etag</ETag>")

    def _content(self):
        data = self.server.bucket.objects.get(self.key, b"")
        byte_range = re.match(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
        if byte_range is None:
            return 200, {}, data
        first, last = int(byte_range[1]), min(int(byte_range[2]), len(data) - 1)
        return 206, {"Content-Range": f"bytes {first}-{last}/{len(data)}"}, data[first : last + 1]

    def answer(self, status, data, headers=None):
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        self.send_header("Last-Modified", "Fri, 27 Nov 2026 00:00:00 GMT")
        for name, value in ({"ETag": '"etag"'} | (headers or {})).items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)
        return True

    def _answer_xml(self, status, name, inner):
        return self.answer(status, f'<?xml version="1.0"?>\n<{name}>{inner}</{name}>'.encode())

    def refuse(self, status, code):
        return self._answer_xml(status, "Error", f"<Code>{code}</Code><Message>as requested</Message>")

    def answer_half(self, then=None):
        status, headers, data = self._content()
        self.send_response(status)
        self.send_header("Content-Length", str(max(2, len(data))))
        for name, value in headers.items():  # no ETag, with which obstore itself would resume
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(data[: len(data) // 2])
        self.wfile.flush()
        if then:
            then()
        return self.reset()

    def reset(self):
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
        self.close_connection = True
        self.connection.close()
        return True
