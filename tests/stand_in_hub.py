"""A stand-in for the hub's interface, on this machine."""

import contextlib
import hashlib
import http.server
import threading

from huggingface_hub import constants


class HubHandler(http.server.BaseHTTPRequestHandler):
    """Answers; what to, a test's own `do_GET` says, which `do_HEAD` should be, too."""

    def answer(self, content, status=200, **headers):
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(content)

    def log_message(self, *_):
        pass


def oid(content):
    return hashlib.sha1(content).hexdigest()


@contextlib.contextmanager
def running(handler, monkeypatch):
    """A server that huggingface_hub takes for the hub."""
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    endpoint = f"http://127.0.0.1:{server.server_port}"
    monkeypatch.setattr(constants, "ENDPOINT", endpoint)
    template = endpoint + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    yield server
    server.shutdown()
    server.server_close()
    thread.join()
