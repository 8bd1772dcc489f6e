"""As much of a W&B server as its client needs to believe in one: who logs in, runs, files, and the stream of rows."""

import contextlib
import http.server
import json
import threading


class WandbServer:
    """Listens on a port of this machine; keeps the rows that clients upload."""

    def __init__(self, refuses=False):
        """`refuses`: whether it knows nobody's key."""
        self.rows, self.uploaded = [], []
        server = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_POST(self):
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                if refuses:
                    self.send_error(401)
                    return
                reply = json.dumps(server.answer(self.path, body)).encode()
                self.send_response(200)
                self.send_header("Content-Length", str(len(reply)))
                self.end_headers()
                self.wfile.write(reply)

            do_PUT = do_POST

            def log_message(self, *_):
                pass

        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    @contextlib.contextmanager
    def listening(self):
        thread = threading.Thread(target=self._server.serve_forever, daemon=True)
        thread.start()
        try:
            yield self
        finally:
            self._server.shutdown()
            self._server.server_close()
            thread.join()

    def answer(self, path, body):
        """What the server says to a request."""
        if path.endswith("/file_stream"):
            history = json.loads(body).get("files", {}).get("wandb-history.jsonl", {})
            self.rows += [json.loads(line) for line in history.get("content", [])]
            return {}
        if path.startswith("/upload/"):
            self.uploaded.append(path.removeprefix("/upload/"))
            return {}
        if path != "/graphql":
            return {}
        asked = json.loads(body)
        given = asked.get("variables") or {}
        if asked["operationName"] == "Viewer":
            person = {"id": "1", "entity": "somebody", "username": "somebody", "flags": "{}", "teams": {"edges": []}}
            return {"data": {"viewer": person}}
        if asked["operationName"] == "UpsertBucket":
            project = {"id": "2", "name": given["project"], "entity": {"id": "1", "name": "somebody"}}
            bucket = {"id": "3", "name": given["name"], "displayName": given["displayName"], "project": project}
            return {"data": {"upsertBucket": {"bucket": bucket, "inserted": True}}}
        if asked["operationName"] == "CreateRunFiles":
            files = [{"name": name, "uploadUrl": f"{self.url}/upload/{name}"} for name in given["files"]]
            return {"data": {"createRunFiles": {"runID": "3", "uploadHeaders": [], "files": files}}}
        return {"data": {}}
