"""Stands in for OpenSearch: the fields and types that GET /_cluster/health of version 2.19 has."""

from __future__ import annotations

import http.server
import json
from pathlib import Path

STATUS = Path("/tmp/search-status")


class Answers(http.server.BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        status = STATUS.read_text(encoding="ascii").strip()
        health = {
            "cluster_name": "opensearch",
            "status": status,
            "timed_out": False,
            "number_of_nodes": 2,
            "number_of_data_nodes": 2,
            "discovered_master": True,
            "discovered_cluster_manager": True,
            "active_primary_shards": 1,
            "active_shards": 1,
            "relocating_shards": 0,
            "initializing_shards": 0,
            "unassigned_shards": 0 if status == "green" else 1,
            "delayed_unassigned_shards": 0,
            "number_of_pending_tasks": 0,
            "number_of_in_flight_fetch": 0,
            "task_max_waiting_in_queue_millis": 0,
            "active_shards_percent_as_number": 100.0,
        }
        # For Prometheus, which has to have a target that can be taken away.
        metrics = self.path == "/metrics"
        body = b"" if metrics else json.dumps(health).encode()
        self.send_response(200 if metrics or self.path == "/_cluster/health" else 404)
        self.send_header("Content-Type", "text/plain" if metrics else "application/json; charset=UTF-8")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_words: object) -> None:
        """Silence."""


if __name__ == "__main__":
    http.server.ThreadingHTTPServer(("127.0.0.1", 9200), Answers).serve_forever()
