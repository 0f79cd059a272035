"""An image server on loopback: image_server.py DIRECTORY LOG [CUT].

Serves DIRECTORY with ETags, conditional requests and ranges, and logs a line for each request: the status, the path, the
range. With CUT, an answer breaks off after that many bytes. What is asked for below /stalled/ begins and never goes on; below
/encoded/ it comes with a Content-Encoding. Prints its address, then serves until it is killed.
"""

import hashlib
import http.server
import os
import re
import sys
import time

directory, log = sys.argv[1:3]
cut = int(sys.argv[3]) if len(sys.argv) > 3 else None


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self):
        if self.path.startswith("/stalled/"):
            self.send_response(200)
            self.send_header("Content-Length", "10")
            self.end_headers()
            self.wfile.write(b"hello")
            self.wfile.flush()
            time.sleep(1000)
        name = self.path.lstrip("/")
        encoding = {"Content-Encoding": "gzip"} if name.startswith("encoded/") else {}
        path = os.path.join(directory, name.removeprefix("encoded/"))
        if not os.path.isfile(path):
            return self.answer(404, b"")
        with open(path, "rb") as file:
            content = file.read()
        etag = '"%s"' % hashlib.md5(content).hexdigest()
        if self.headers["If-None-Match"] == etag:
            return self.answer(304, b"", ETag=etag)
        wanted = re.fullmatch(r"bytes=(\d+)-", self.headers["Range"] or "")
        if wanted and self.headers["If-Range"] in (None, etag):
            first = int(wanted[1])
            span = "bytes %d-%d/%d" % (first, len(content) - 1, len(content))
            return self.answer(206, content[first:], ETag=etag, **{"Content-Range": span})
        self.answer(200, content, ETag=etag, **encoding)

    def answer(self, status, body, **headers):
        with open(log, "a") as file:
            print(status, self.path, self.headers["Range"] or "-", file=file)
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        if status != 304:
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body[:cut])
        if cut is not None and len(body) > cut:
            self.wfile.flush()
            self.close_connection = True

    def log_message(self, *_):
        pass


server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
# Clients go when they like.
server.handle_error = lambda *_: None
print("http://127.0.0.1:%d" % server.server_address[1], flush=True)
server.serve_forever()
