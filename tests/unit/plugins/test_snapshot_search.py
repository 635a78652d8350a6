"""Indices of a search cluster, against a stand-in that speaks its REST interface."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.vmfleet.ops.plugins.module_utils._snapshot import search
from ansible_collections.vmfleet.ops.plugins.module_utils._snapshot.model import (
    Damaged,
    Denied,
    EngineFailed,
    Key,
    Member,
    Refused,
)
from ansible_collections.vmfleet.ops.plugins.module_utils._snapshot.repository import LocalPath
from ansible_collections.vmfleet.ops.plugins.module_utils._snapshot.search import Options, Search
from ansible_collections.vmfleet.ops.plugins.module_utils._snapshot.sources import Context, Target
from search_standin import Standin


@pytest.fixture
def cluster() -> Standin:
    standin = Standin()
    standin.indices = {
        "papers": {str(number): {"title": f"paper {number}"} for number in range(250)},
        "notes": {"a": {"text": "ü"}},
        ".system": {"x": {}},
    }
    return standin


@pytest.fixture
def source(cluster: Standin, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Search]:
    monkeypatch.setattr(search, "PACE", 0.01)
    server = cluster.serve()
    repository = LocalPath("main", Key("/key", "id", b"mac"), {"path": str(tmp_path)})
    options = Options(f"http://127.0.0.1:{server.server_port}", "backups")
    yield Search("search", options, Context("db1", repository, str(tmp_path), lambda line: None))
    server.shutdown()
    server.server_close()


def test_comes_back_as_it_was(source: Search, cluster: Standin) -> None:
    source.plan()
    assert source.estimate() == 25_100
    member = source.copy("One", full=False)
    assert (member.engine, sorted(member.digests)) == ("opensearch 2.19.0", ["notes", "papers"])
    assert source.verify(member, thorough=True) == {"engine": "verified", "indices": 2, "documents": 251}
    wanted = dict(cluster.indices)
    cluster.indices = {".system": {"x": {}}, "papers": {"1": {"title": "another"}}}
    choice = source.choose(member, [member], Target())
    assert choice["existed"] == ["papers"]
    source.stage(choice)
    source.swap(choice)
    assert cluster.indices == wanted
    source.commit(choice)
    assert list(cluster.snapshots) == [member.label]
    assert not cluster.blocked


@pytest.mark.parametrize("upto", ["DELETE /papers", "_restore", "_count", ""])
def test_a_restore_is_undone_from_wherever_it_was_killed(
    source: Search, cluster: Standin, monkeypatch: pytest.MonkeyPatch, upto: str
) -> None:
    member = source.copy("one", full=False)
    cluster.indices = {"papers": {"1": {"title": "another"}}}
    live = {"papers": {"1": {"title": "another"}}}
    choice = source.choose(member, [member], Target())
    source.stage(choice)
    real = search.Cluster.ask

    def killed(self: search.Cluster, method: str, path: str, *arguments: Any, **options: Any) -> Any:
        if upto and upto in f"{method} {path}":
            raise KeyboardInterrupt
        return real(self, method, path, *arguments, **options)

    with monkeypatch.context() as patched:
        patched.setattr(search.Cluster, "ask", killed)
        if upto:
            with pytest.raises(KeyboardInterrupt):
                source.swap(choice)
        else:
            source.swap(choice)
    source.undo(choice)
    source.undo(choice)
    assert cluster.indices == live
    assert list(cluster.snapshots) == [member.label]
    assert not cluster.blocked


@pytest.mark.parametrize("state", ["PARTIAL", "FAILED"])
def test_a_snapshot_that_is_not_whole_is_none(source: Search, cluster: Standin, state: str) -> None:
    cluster.state = state
    with pytest.raises(EngineFailed, match=f"ended as {state}: node left"):
        source.copy("one", full=False)
    assert cluster.snapshots == {}


def test_pruning_leaves_what_sets_in_another_repository_need(source: Search, cluster: Standin, tmp_path: Path) -> None:
    other = LocalPath("other", Key("/key", "id", b"mac"), {"path": str(tmp_path)})
    elsewhere = Search("search", source.options, Context("db1", other, str(tmp_path), lambda line: None))
    source.copy("one", full=False)
    kept = elsewhere.copy("one", full=False)
    source.prune([])
    assert list(cluster.snapshots) == [kept.label]


def test_a_restore_never_goes_without_the_former_data(source: Search, cluster: Standin) -> None:
    member = source.copy("one", full=False)
    choice = source.choose(member, [member], Target())
    source.stage(choice)
    cluster.state = "PARTIAL"
    live = dict(cluster.indices)
    with pytest.raises(EngineFailed, match="PARTIAL"):
        source.swap(choice)
    source.undo(choice)
    assert cluster.indices == live
    assert not cluster.blocked


def lose(documents: dict[str, Any]) -> None:
    documents.popitem()


def change(documents: dict[str, Any]) -> None:
    documents[next(iter(documents))] = {"title": "spoilt"}


@pytest.mark.parametrize(("spoil", "words"), [(lose, "documents, and"), (change, "not as they were saved")])
def test_what_is_not_as_it_was_is_damaged(source: Search, cluster: Standin, spoil: Any, words: str) -> None:
    member = source.copy("one", full=False)
    live = dict(cluster.indices)
    cluster.spoil = spoil
    with pytest.raises(Damaged, match=words):
        source.verify(member, thorough=True)
    assert cluster.indices == live


def test_what_changed_meanwhile_may_be_anything(source: Search, cluster: Standin) -> None:
    work = source.mark("one", {})
    del cluster.indices["papers"]["0"]
    cluster.indices["papers"]["1"] = {"title": "another"}
    member = source.finish("one", work)
    assert member.digests["papers"]["docs"] == [249, 250]
    assert not {"0", "1"} & set(member.digests["papers"]["sample"])
    source.verify(member, thorough=True)


def test_a_snapshot_that_somebody_removed_is_told(source: Search, cluster: Standin) -> None:
    member = source.copy("one", full=False)
    cluster.snapshots.clear()
    with pytest.raises(Damaged, match="no whole snapshot"):
        source.verify(member, thorough=False)


def test_pruning_takes_its_own(source: Search, cluster: Standin) -> None:
    members: list[Member] = [source.copy(name, full=False) for name in ("one", "two")]
    others = Search("search-2", source.options, source.context).copy("one", full=False)
    cluster.snapshots["by-hand"] = dict(cluster.snapshots[others.label])
    source.prune(members[1:])
    assert sorted(cluster.snapshots) == sorted([members[1].label, others.label, "by-hand"])


def test_what_cannot_begin_is_refused(source: Search, cluster: Standin) -> None:
    cluster.health = "red"
    with pytest.raises(Refused, match="the cluster is red"):
        source.plan()
    cluster.health = "yellow"
    cluster.repositories.clear()
    with pytest.raises(Refused, match="knows no repository 'backups'"):
        source.plan()
    cluster.repositories.add("backups")
    cluster.indices = {".system": {}}
    with pytest.raises(Refused, match="there is no index"):
        source.plan()


def test_credentials(source: Search, cluster: Standin, tmp_path: Path) -> None:
    (tmp_path / "password").write_text("secret\n")
    source.options.user, source.options.password_file = "backup", str(tmp_path / "password")
    cluster.password = f"Basic {base64.b64encode(b'backup:secret').decode()}"
    source.plan()
    cluster.password = "other"
    with pytest.raises(Denied, match="401"):
        source.plan()


def test_a_cluster_that_is_away_keeps_no_other_source_from_its_run(tmp_path: Path, source: Search) -> None:
    source.options.url = "http://127.0.0.1:9"
    source.settle()
    with pytest.raises(EngineFailed, match="Connection refused"):
        source.plan()
