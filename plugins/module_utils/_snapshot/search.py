# Copyright (c) vmfleet.ops maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Indices of OpenSearch or Elasticsearch, by the cluster's own snapshots in a repository that it knows.

Counts of documents and digests of some of them are taken before and after a snapshot: what was the same both times has
to come back. A snapshot that lacks shards (PARTIAL) is none.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import http.client
import json
import ssl
import time
import urllib.parse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from .model import Damaged, Denied, EngineFailed, Member, Refused, canonical, now
from .sources import PATIENCE, Source, Target

# What is restored beside the live indices, and the snapshot of those that a restore replaces.
STAGED = "-vmfleet-restored"
FORMER = "former"
# Documents of each index whose content is compared.
SAMPLE = 100
# Seconds between two looks at a snapshot that is being made.
PACE = 0.5


@dataclass
class Options:
    """What operators announce by ``backup_search`` of role backup.

    ``repository`` is registered with the cluster. ``indices`` are names and patterns; those with a leading dot are the
    cluster's own and never meant by a pattern.
    """

    url: str
    repository: str
    indices: list[str] = field(default_factory=lambda: ["*"])
    user: str = ""
    password_file: str = ""
    ca_file: str = ""


def _digest(document: Any) -> str:
    return hashlib.sha256(canonical(document)).hexdigest()


class Cluster:
    """The REST interface of a cluster."""

    def __init__(self, options: Options) -> None:
        self.options = options

    def _connection(self, timeout: float) -> http.client.HTTPConnection:
        url = urllib.parse.urlsplit(self.options.url)
        if url.scheme == "http":
            return http.client.HTTPConnection(url.netloc, timeout=timeout)
        context = ssl.create_default_context(cafile=self.options.ca_file or None)
        return http.client.HTTPSConnection(url.netloc, timeout=timeout, context=context)

    def ask(self, method: str, path: str, body: Any = None, *, absent: Any = None, timeout: float = 60) -> Any:
        """The answer. ``absent`` is what stands for 404, if that is no error.

        :raises Denied: when the cluster refuses the credentials.
        :raises EngineFailed: for every other answer, and none.
        """
        headers = {"Content-Type": "application/json"}
        if self.options.user:
            with open(self.options.password_file, encoding="utf-8") as handle:
                pair = f"{self.options.user}:{handle.read().strip()}"
            headers["Authorization"] = f"Basic {base64.b64encode(pair.encode()).decode()}"
        said = f"{method} {self.options.url.rstrip('/')}{path}: "
        try:
            with contextlib.closing(self._connection(timeout)) as connection:
                connection.request(method, path, None if body is None else json.dumps(body), headers)
                answer = connection.getresponse()
                content = answer.read()
            if answer.status == 404 and absent is not None:
                return absent
            if answer.status < 300:
                return json.loads(content)
        except (OSError, http.client.HTTPException, ValueError) as error:
            raise EngineFailed(f"{said}{error or type(error).__name__}") from error
        refused = Denied if answer.status in (401, 403) else EngineFailed
        raise refused(f"{said}{answer.status}: {content[:500].decode(errors='replace')}")


class Search(Source):
    """See the module."""

    kind = "search"
    takes = Options
    options: Options

    @property
    def cluster(self) -> Cluster:
        return Cluster(self.options)

    def _place(self, snapshot: str = "", rest: str = "") -> str:
        parts = [self.options.repository, *([snapshot] if snapshot else [])]
        return "/_snapshot/" + "/".join(urllib.parse.quote(part, safe="") for part in parts) + rest

    @property
    def _prefix(self) -> str:
        """Of the snapshots for sets of this source, host and repository, and of no others that the cluster has."""
        owner = f"{self.context.repository.name}/{self.context.host}/{self.name}"
        return f"vmfleet-{hashlib.sha256(owner.encode()).hexdigest()[:12]}-"

    @property
    def _former(self) -> str:
        return f"{FORMER}-{self._prefix}restore"

    def _label(self, set_id: str) -> str:
        # Names there have no capitals.
        return f"{self._prefix}{set_id.lower()}-{hashlib.sha256(set_id.encode()).hexdigest()[:6]}"

    def _indices(self, patterns: Sequence[str]) -> dict[str, int]:
        """Those that there are, and the bytes of their primary shards."""
        names = ",".join(urllib.parse.quote(pattern, safe="*") for pattern in patterns)
        query = "format=json&bytes=b&expand_wildcards=open&h=index,pri.store.size"
        found = self.cluster.ask("GET", f"/_cat/indices/{names}?{query}", absent=[])
        return {
            entry["index"]: int(entry["pri.store.size"] or 0)
            for entry in found
            if entry["index"] in patterns or not (entry["index"].startswith(".") or entry["index"].endswith(STAGED))
        }

    def plan(self) -> None:
        if self.cluster.ask("GET", "/_cluster/health")["status"] == "red":
            raise Refused(f"{self.name}: the cluster is red: it lacks shards, which no snapshot would have; mend it")
        if not self.cluster.ask("GET", self._place(), absent={}):
            raise Refused(
                f"{self.name}: the cluster knows no repository {self.options.repository!r}; register it with PUT "
                f"{self._place()}"
            )
        if not self._indices(self.options.indices):
            raise Refused(f"{self.name}: there is no index {', '.join(self.options.indices)}")

    def estimate(self) -> int:
        return sum(self._indices(self.options.indices).values())

    def _look(self, index: str) -> dict[str, Any]:
        """Number of documents, and digests of some of them, by their ids."""
        self.cluster.ask("POST", f"/{index}/_refresh")
        count = self.cluster.ask("GET", f"/{index}/_count")["count"]
        hits = self.cluster.ask("POST", f"/{index}/_search", {"size": SAMPLE, "sort": ["_doc"]})["hits"]["hits"]
        return {"docs": count, "sample": {hit["_id"]: _digest(hit.get("_source")) for hit in hits}}

    def _make(self, label: str, indices: Sequence[str]) -> None:
        body = {"indices": ",".join(indices), "include_global_state": False, "ignore_unavailable": False}
        self.cluster.ask("PUT", self._place(label, "?wait_for_completion=false"), body)

    def _made(self, label: str) -> None:
        """Waits for a snapshot. :raises EngineFailed: when it is not whole; it is gone then."""
        ends = time.monotonic() + PATIENCE
        while True:
            (snapshot,) = self.cluster.ask("GET", self._place(label))["snapshots"]
            if snapshot["state"] not in ("IN_PROGRESS", "STARTED") or time.monotonic() > ends:
                break
            time.sleep(PACE)
        if snapshot["state"] != "SUCCESS":
            self._remove(label)
            reasons = "; ".join(str(entry.get("reason")) for entry in snapshot.get("failures", [])[:3])
            raise EngineFailed(f"{self.name}: the snapshot ended as {snapshot['state']}: {reasons or 'no reason'}")

    def _remove(self, label: str) -> None:
        self.cluster.ask("DELETE", self._place(label), absent={}, timeout=PATIENCE)

    def mark(self, set_id: str, work: dict[str, Any]) -> dict[str, Any]:
        began = now()
        before = {index: self._look(index) for index in sorted(self._indices(self.options.indices))}
        self._make(self._label(set_id), list(before))
        return {"label": self._label(set_id), "began": began, "before": before}

    def finish(self, set_id: str, work: dict[str, Any]) -> Member:
        label = work["label"]
        self._made(label)
        digests = {}
        for index, before in work["before"].items():
            after = self._look(index)
            digests[index] = {
                "docs": sorted([before["docs"], after["docs"]]),
                "sample": dict(before["sample"].items() & after["sample"].items()),
            }
        (status,) = self.cluster.ask("GET", self._place(label, "/_status"))["snapshots"]
        version = self.cluster.ask("GET", "/")["version"]
        return Member(
            source=self.name,
            type=self.kind,
            engine=f"{version.get('distribution', 'elasticsearch')} {version['number']}",
            label=label,
            # Each shard is of its own moment.
            consistency="crash",
            began=work["began"],
            ended=now(),
            size=status["stats"]["total"]["size_in_bytes"],
            stored=status["stats"]["incremental"]["size_in_bytes"],
            digests=digests,
            details={"repository": self.options.repository},
        )

    def of_one_moment(self, member: Member) -> bool:
        return False

    def verify(self, member: Member, thorough: bool) -> dict[str, Any]:
        found = self.cluster.ask("GET", self._place(member.label), absent={}).get("snapshots", [])
        if not found or found[0]["state"] != "SUCCESS" or set(member.digests) - set(found[0]["indices"]):
            raise Damaged(f"{self.name}: the cluster has no whole snapshot {member.label} any more")
        # All nodes can write and read there.
        self.cluster.ask("POST", self._place("", "/_verify"), timeout=600)
        proven: dict[str, Any] = {"engine": "verified"}
        if thorough:
            proven.update(self._prove(member.label, member.digests))
        return proven

    def _restore(self, label: str, indices: Sequence[str], suffix: str = "") -> None:
        """Has the cluster restore indices, under their names or beside them. :raises Damaged: when one is not whole."""
        body: dict[str, Any] = {
            "indices": ",".join(indices),
            "include_global_state": False,
            "include_aliases": not suffix,
            "ignore_index_settings": ["index.blocks.write"],
        }
        if suffix:
            body |= {"rename_pattern": "(.+)", "rename_replacement": f"$1{suffix}"}
            body |= {"index_settings": {"index.number_of_replicas": 0}}
        answer = self.cluster.ask(
            "POST", self._place(label, "/_restore?wait_for_completion=true"), body, timeout=PATIENCE
        )
        shards = answer["snapshot"]["shards"]
        if shards["failed"] or shards["successful"] != shards["total"]:
            raise Damaged(f"{self.name}: {label}: {shards['failed']} of {shards['total']} shards cannot be restored")

    def _compare(self, digests: Mapping[str, Any], suffix: str) -> int:
        """Holds restored indices against what was saved. Returns the documents. :raises Damaged:"""
        total = 0
        for index, wanted in digests.items():
            path = f"/{index}{suffix}"
            self.cluster.ask("POST", f"{path}/_refresh")
            count = self.cluster.ask("GET", f"{path}/_count")["count"]
            least, most = wanted["docs"]
            if not least <= count <= most:
                raise Damaged(f"{self.name}: {index} has {count} documents, and {least} to {most} were saved")
            ids = list(wanted["sample"])
            found = self.cluster.ask("POST", f"{path}/_mget", {"ids": ids})["docs"] if ids else []
            wrong = [
                entry["_id"]
                for entry in found
                if not entry.get("found") or _digest(entry.get("_source")) != wanted["sample"][entry["_id"]]
            ]
            if wrong or len(found) != len(ids):
                raise Damaged(f"{self.name}: {index}: documents are not as they were saved: {', '.join(wrong[:3])}")
            total += count
        return total

    def _prove(self, label: str, digests: Mapping[str, Any]) -> dict[str, Any]:
        """Restores beside the live indices and compares; nothing of it is left."""
        self._unstage()
        try:
            self._restore(label, list(digests), STAGED)
            return {"indices": len(digests), "documents": self._compare(digests, STAGED)}
        finally:
            self._unstage()

    def settle(self) -> None:
        # A cluster that does not answer keeps no run of other sources.
        with contextlib.suppress(EngineFailed):
            self._unstage()

    def _unstage(self) -> None:
        for index in self.cluster.ask("GET", f"/_cat/indices/*{STAGED}?format=json&h=index", absent=[]):
            self.cluster.ask("DELETE", f"/{index['index']}", absent={})

    def choose(self, member: Member, members: Sequence[Member], target: Target) -> dict[str, Any]:
        self.only_own_moment(target)
        if self.cluster.ask("GET", self._place(self._former), absent={}):
            raise Refused(
                f"snapshot {self._former} is there, and no restore is open that made it; look at it, and remove it"
            )
        return {
            "label": member.label,
            "digests": member.digests,
            "existed": sorted(self._indices(list(member.digests))),
        }

    def stage(self, choice: dict[str, Any]) -> dict[str, Any]:
        return self._prove(choice["label"], choice["digests"])

    def _block(self, indices: Sequence[str], value: bool | None) -> None:
        for index in indices:
            self.cluster.ask("PUT", f"/{index}/_settings", {"index.blocks.write": value}, absent={})

    def swap(self, choice: dict[str, Any]) -> None:
        # Indices cannot be renamed: those that are live are kept as a snapshot of their last state.
        self._block(choice["existed"], value=True)
        if choice["existed"]:
            self._make(self._former, choice["existed"])
            self._made(self._former)
        self._delete(choice["existed"])
        self._restore(choice["label"], list(choice["digests"]))
        self._compare(choice["digests"], "")

    def _delete(self, indices: Sequence[str]) -> None:
        for index in indices:
            self.cluster.ask("DELETE", f"/{index}", absent={})

    def undo(self, choice: dict[str, Any]) -> None:
        self._unstage()
        former = self.cluster.ask("GET", self._place(self._former), absent={}).get("snapshots", [])
        if former and former[0]["state"] == "SUCCESS":
            self._delete(list(choice["digests"]))
            self._restore(self._former, choice["existed"])
        elif choice["existed"]:
            self._block(choice["existed"], value=None)
        else:
            self._delete(list(choice["digests"]))
        self._remove(self._former)

    def commit(self, choice: dict[str, Any]) -> None:
        self._remove(self._former)

    def prune(self, keep: Sequence[Member]) -> None:
        needed = {member.label for member in keep}
        found = self.cluster.ask("GET", self._place("_all"), absent={}).get("snapshots", [])
        for snapshot in found:
            name = snapshot["snapshot"]
            if name.startswith(self._prefix) and name not in needed:
                self._remove(name)
