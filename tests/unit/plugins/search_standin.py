"""Stands in for OpenSearch, which Debian does not have: documents, indices and snapshots of its REST interface."""

from __future__ import annotations

import copy
import fnmatch
import http.server
import json
import threading
import urllib.parse
from collections.abc import Callable
from typing import Any

INFO = {"version": {"number": "2.19.0", "distribution": "opensearch"}}


class Standin:
    """The state of a cluster. ``state`` is how snapshots end, and ``spoil`` what becomes of restored documents."""

    def __init__(self) -> None:
        self.indices: dict[str, dict[str, Any]] = {}
        self.snapshots: dict[str, dict[str, Any]] = {}
        self.blocked: set[str] = set()
        self.repositories = {"backups"}
        self.health = "green"
        self.state = "SUCCESS"
        self.spoil: Callable[[dict[str, Any]], None] = lambda documents: None
        self.asked: list[str] = []
        self.password = ""

    def serve(self) -> http.server.ThreadingHTTPServer:
        standin = self

        class Answers(http.server.BaseHTTPRequestHandler):
            def answer(self) -> None:
                length = int(self.headers.get("Content-Length") or 0)
                body = json.loads(self.rfile.read(length) or "{}") if length else {}
                url = urllib.parse.urlsplit(self.path)
                standin.asked.append(f"{self.command} {url.path}")
                query = dict(urllib.parse.parse_qsl(url.query))
                if standin.password and self.headers.get("Authorization") != standin.password:
                    code, said = 401, {"error": "Unauthorized"}
                else:
                    parts = [urllib.parse.unquote(part) for part in url.path.split("/") if part]
                    code, said = standin.ask(self.command, parts, query, body)
                content = json.dumps(said).encode()
                self.send_response(code)
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

            do_GET = do_POST = do_PUT = do_DELETE = answer

            def log_message(self, *_words: object) -> None:
                """Silence."""

        server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Answers)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        return server

    def ask(self, method: str, parts: list[str], query: dict[str, str], body: dict[str, Any]) -> tuple[int, Any]:
        if not parts:
            return 200, INFO
        if parts == ["_cluster", "health"]:
            return 200, {"status": self.health}
        if parts[:2] == ["_cat", "indices"]:
            patterns = parts[2].split(",")
            found = [name for name in self.indices if any(fnmatch.fnmatchcase(name, one) for one in patterns)]
            if not found and not any("*" in one for one in patterns):
                return 404, {"error": "index_not_found_exception"}
            return 200, [{"index": name, "pri.store.size": str(100 * len(self.indices[name]))} for name in found]
        if parts[0] == "_snapshot":
            return self.snapshot(method, parts[1:], query, body)
        return self.index(method, parts, body)

    def index(self, method: str, parts: list[str], body: dict[str, Any]) -> tuple[int, Any]:
        name, *what = parts
        if name not in self.indices:
            return 404, {"error": "index_not_found_exception"}
        documents = self.indices[name]
        if what == ["_count"]:
            return 200, {"count": len(documents)}
        if what == ["_search"]:
            hits = [{"_id": key, "_source": value} for key, value in list(documents.items())[: body["size"]]]
            return 200, {"hits": {"hits": hits}}
        if what == ["_mget"]:
            return 200, {
                "docs": [
                    {"_id": key, "found": key in documents, **({"_source": documents[key]} if key in documents else {})}
                    for key in body["ids"]
                ]
            }
        if what == ["_settings"]:
            (self.blocked.add if body["index.blocks.write"] else self.blocked.discard)(name)
        elif not what and method == "DELETE":
            del self.indices[name]
            self.blocked.discard(name)
        return 200, {"acknowledged": True}

    def snapshot(
        self, method: str, parts: list[str], query: dict[str, str], body: dict[str, Any]
    ) -> tuple[int, Any]:
        repository, *rest = parts
        if repository not in self.repositories:
            return 404, {"error": "repository_missing_exception"}
        if not rest or rest == ["_verify"]:
            return 200, {repository: {"type": "fs"}}
        name = rest[0]
        if rest == ["_all"]:
            return 200, {"snapshots": [self.told(name) for name in self.snapshots]}
        if method == "PUT":
            if name in self.snapshots:
                return 400, {"error": "invalid_snapshot_name_exception"}
            content = {index: copy.deepcopy(self.indices[index]) for index in body["indices"].split(",")}
            self.snapshots[name] = {"content": content, "state": self.state}
            return 200, {"accepted": True}
        if name not in self.snapshots:
            return 404, {"error": "snapshot_missing_exception"}
        if method == "DELETE":
            del self.snapshots[name]
            return 200, {"acknowledged": True}
        if rest[1:] == ["_status"]:
            size = {"size_in_bytes": 100}
            return 200, {"snapshots": [{"stats": {"total": size, "incremental": size}}]}
        if rest[1:] == ["_restore"]:
            return self.restore(name, body)
        return 200, {"snapshots": [self.told(name)]}

    def told(self, name: str) -> dict[str, Any]:
        snapshot = self.snapshots[name]
        failures = [] if snapshot["state"] == "SUCCESS" else [{"reason": "node left"}]
        return {
            "snapshot": name,
            "state": snapshot["state"],
            "indices": sorted(snapshot["content"]),
            "failures": failures,
        }

    def restore(self, name: str, body: dict[str, Any]) -> tuple[int, Any]:
        chosen = body["indices"].split(",")
        for index in chosen:
            target = body.get("rename_replacement", "$1").replace("$1", index)
            if target in self.indices:
                return 500, {"error": f"cannot restore index [{target}] because an open index with same name exists"}
            documents = copy.deepcopy(self.snapshots[name]["content"][index])
            self.spoil(documents)
            self.indices[target] = documents
        return 200, {"snapshot": {"shards": {"total": len(chosen), "failed": 0, "successful": len(chosen)}}}
