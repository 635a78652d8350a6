"""The fleet's authority and the check of given certificates, judged by cryptography and by openssl itself."""

from __future__ import annotations

import concurrent.futures
import datetime
import json
import os
import pathlib
import stat
import subprocess
import sys
import typing as t

import pytest
import yaml
from ansible.constants import config
from ansible.errors import AnsibleLookupError
from ansible_collections.vmfleet.ops.plugins.lookup import fleet_certificate
from ansible_collections.vmfleet.ops.plugins.plugin_utils import _fleet_pki as pki
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec

NAMES = ["db1", "10.1.2.3", "fd00::1", "localhost"]


def authority(path: pathlib.Path, **options: t.Any) -> pki.FleetCa:
    return pki.FleetCa(str(path / "pki"), **options)


def parsed(pem: str) -> x509.Certificate:
    return x509.load_pem_x509_certificate(pem.encode())


def tree(path: pathlib.Path) -> dict[str, bytes]:
    return {str(item.relative_to(path)): item.read_bytes() for item in path.rglob("*") if item.is_file()}


def openssl(*argv: str, stdin: str = "") -> str:
    return subprocess.run(["openssl", *argv], input=stdin, check=True, capture_output=True, text=True).stdout


def shift(monkeypatch: pytest.MonkeyPatch, **delta: float) -> None:
    moment = datetime.datetime.now(datetime.timezone.utc).replace(microsecond=0) + datetime.timedelta(**delta)
    monkeypatch.setattr(pki, "now", lambda: moment)


# ------------------------------------------------------------------------------------------------ issuing


def test_leaf_verifies_with_openssl_for_each_of_its_names(tmp_path: pathlib.Path) -> None:
    leaf = authority(tmp_path).leaf("db1/host", NAMES)
    files = {name: tmp_path / name for name in ("ca.crt", "leaf.crt", "leaf.key")}
    for file, text in zip(files.values(), (leaf.ca, leaf.certificate, leaf.private_key), strict=True):
        file.write_text(text)
    verify = ("verify", "-x509_strict", "-CAfile", str(files["ca.crt"]))
    for arguments in (
        ("-verify_hostname", "db1"),
        ("-verify_ip", "10.1.2.3"),
        ("-verify_ip", "fd00::1"),
        ("-purpose", "sslserver"),
        ("-purpose", "sslclient"),
    ):
        assert openssl(*verify, *arguments, str(files["leaf.crt"])).endswith("OK\n")
    with pytest.raises(subprocess.CalledProcessError):
        openssl(*verify, "-verify_hostname", "db2", str(files["leaf.crt"]))
    assert openssl("pkey", "-in", str(files["leaf.key"]), "-pubout") == openssl(
        "x509", "-in", str(files["leaf.crt"]), "-noout", "-pubkey"
    )


def test_leaf_is_an_end_entity_on_p256_signed_by_the_authority(tmp_path: pathlib.Path) -> None:
    leaf = authority(tmp_path, days=100).leaf("db1/host", NAMES)
    certificate, issuer = parsed(leaf.certificate), parsed(leaf.ca)
    certificate.verify_directly_issued_by(issuer)
    assert isinstance(certificate.public_key(), ec.EllipticCurvePublicKey)
    assert t.cast(ec.EllipticCurvePublicKey, certificate.public_key()).curve.name == "secp256r1"
    assert not certificate.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    assert issuer.extensions.get_extension_for_class(x509.BasicConstraints).value == x509.BasicConstraints(True, 0)
    assert datetime.timedelta(days=99) < leaf.not_after - pki.now() <= datetime.timedelta(days=100)


def test_second_call_returns_the_same_and_needs_no_cryptography(tmp_path: pathlib.Path) -> None:
    first = authority(tmp_path).leaf("db1/host", NAMES)
    before = tree(tmp_path)
    second = authority(tmp_path).leaf("db1/host", list(reversed(NAMES)))
    assert first.changed and not second.changed
    assert second == first._replace(changed=False)
    assert tree(tmp_path) == before
    script = (
        "import sys\n"
        "from ansible_collections.vmfleet.ops.plugins.plugin_utils import _fleet_pki as pki\n"
        f"leaf = pki.FleetCa({str(tmp_path / 'pki')!r}).leaf('db1/host', {NAMES!r})\n"
        "assert not leaf.changed\n"
        "assert not [name for name in sys.modules if name.startswith('cryptography')]\n"
    )
    environment = dict(os.environ, PYTHONPATH=os.pathsep.join(entry for entry in sys.path if entry))
    subprocess.run([sys.executable, "-c", script], check=True, env=environment)


def test_everything_on_disk_is_private(tmp_path: pathlib.Path) -> None:
    old = os.umask(0o000)
    try:
        authority(tmp_path).leaf("db1/host", NAMES)
    finally:
        os.umask(old)
    for item in (tmp_path / "pki", *(tmp_path / "pki").rglob("*")):
        assert stat.S_IMODE(item.stat().st_mode) == (0o700 if item.is_dir() else 0o600), item
    assert (tmp_path / "pki/.gitignore").read_text() == "*\n"
    assert not list((tmp_path / "pki").rglob(".new-*"))


@pytest.mark.parametrize(
    ("days", "again"),
    [(10, False), (396 - 30, False), (397 - 30, True), (500, True)],
)
def test_leaf_is_renewed_inside_the_window(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, days: int, again: bool
) -> None:
    first = authority(tmp_path).leaf("db1/host", NAMES)
    shift(monkeypatch, days=days)
    second = authority(tmp_path).leaf("db1/host", NAMES)
    assert second.changed is again
    assert (second.certificate != first.certificate) is again
    assert second.ca == first.ca


def test_changed_names_issue_anew_for_this_leaf_only(tmp_path: pathlib.Path) -> None:
    ca = authority(tmp_path)
    ca.leaf("db1/host", NAMES)
    other = ca.leaf("db2/host", ["db2"])
    more = ca.leaf("db1/host", [*NAMES, "db.example.org"])
    assert more.changed
    assert more.names == [*NAMES, "db.example.org"]
    assert ca.leaf("db2/host", ["db2"]) == other._replace(changed=False)
    assert ca.leaf("db1/host", NAMES).changed


@pytest.mark.parametrize("victim", ["issued/db1/host.key", "issued/db1/host.crt", "issued/db1/host.json"])
@pytest.mark.parametrize("damage", ["gone", "edited", "empty"])
def test_incomplete_or_edited_set_is_issued_anew(tmp_path: pathlib.Path, victim: str, damage: str) -> None:
    first = authority(tmp_path).leaf("db1/host", NAMES)
    file = tmp_path / "pki" / victim
    if damage == "gone":
        file.unlink()
    else:
        file.write_text("" if damage == "empty" else file.read_text().swapcase())
    second = authority(tmp_path).leaf("db1/host", NAMES)
    assert second.changed
    parsed(second.certificate).verify_directly_issued_by(parsed(first.ca))


def test_record_of_another_version_is_not_trusted(tmp_path: pathlib.Path) -> None:
    authority(tmp_path).leaf("db1/host", NAMES)
    file = tmp_path / "pki/issued/db1/host.json"
    record = json.loads(file.read_text())
    file.write_text(json.dumps(record | {"version": 0}))
    assert authority(tmp_path).leaf("db1/host", NAMES).changed


def test_another_authority_reissues_and_the_old_one_may_stay_trusted(tmp_path: pathlib.Path) -> None:
    old = authority(tmp_path).leaf("db1/host", NAMES)
    (tmp_path / "pki/ca.crt").unlink()
    (tmp_path / "pki/ca.key").unlink()
    new = authority(tmp_path).leaf("db1/host", NAMES)
    assert new.changed and new.ca != old.ca
    with (tmp_path / "pki/ca.crt").open("a") as handle:
        handle.write(old.ca)
    both = authority(tmp_path).leaf("db1/host", NAMES)
    assert not both.changed
    assert both.as_result()["ca_certificates"] == [new.ca, old.ca]


def test_lost_ca_certificate_is_made_again_from_its_key(tmp_path: pathlib.Path) -> None:
    first = authority(tmp_path).leaf("db1/host", NAMES)
    (tmp_path / "pki/ca.crt").unlink()
    second = authority(tmp_path).leaf("db2/host", ["db2"])
    parsed(first.certificate).verify_directly_issued_by(parsed(second.ca))


def test_kept_leaf_serves_without_the_authority_key(tmp_path: pathlib.Path) -> None:
    authority(tmp_path).leaf("db1/host", NAMES)
    (tmp_path / "pki/ca.key").unlink()
    assert not authority(tmp_path).leaf("db1/host", NAMES).changed
    with pytest.raises(pki.PkiError, match=r"ca\.key is missing.*put it back"):
        authority(tmp_path).leaf("db2/host", ["db2"])


def test_passphrase_encrypts_the_authority_key(tmp_path: pathlib.Path) -> None:
    authority(tmp_path, passphrase="opening sesame").leaf("db1/host", NAMES)
    assert "ENCRYPTED" in (tmp_path / "pki/ca.key").read_text()
    assert authority(tmp_path, passphrase="opening sesame").leaf("db2/host", ["db2"]).changed
    with pytest.raises(pki.PkiError, match="no passphrase"):
        authority(tmp_path).leaf("db3/host", ["db3"])
    with pytest.raises(pki.PkiError, match="passphrase is wrong"):
        authority(tmp_path, passphrase="other").leaf("db3/host", ["db3"])


def test_read_only_answers_and_writes_nothing(tmp_path: pathlib.Path) -> None:
    leaf = authority(tmp_path, read_only=True).leaf("db1/host", NAMES)
    assert leaf.changed
    parsed(leaf.certificate).verify_directly_issued_by(parsed(leaf.ca))
    assert list(tmp_path.iterdir()) == []
    authority(tmp_path).leaf("db1/host", NAMES)
    before = tree(tmp_path)
    assert not authority(tmp_path, read_only=True).leaf("db1/host", NAMES).changed
    assert authority(tmp_path, read_only=True).leaf("db1/host", ["db1"]).changed
    assert tree(tmp_path) == before


def test_leaf_does_not_outlive_its_authority(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    warnings: list[str] = []
    ca = authority(tmp_path, ca_days=200, warn=warnings.append)
    leaf = ca.leaf("db1/host", NAMES)
    assert leaf.not_after == pki._not_after(parsed(leaf.ca))
    assert "plan a new authority" in warnings[0]
    shift(monkeypatch, days=180)
    with pytest.raises(pki.PkiError, match=r"ca\.crt ends on .* move ca\.crt and ca\.key away"):
        ca.leaf("db1/host", NAMES)


def test_parallel_forks_agree_on_one_authority_and_one_leaf(tmp_path: pathlib.Path) -> None:
    with concurrent.futures.ProcessPoolExecutor(8) as pool:
        jobs = [pool.submit(_issue, str(tmp_path / "pki"), f"host{number % 4}") for number in range(32)]
        results = [job.result() for job in jobs]
    assert len({ca for _name, ca, _leaf in results}) == 1
    assert len({(name, leaf) for name, _ca, leaf in results}) == 4


def _issue(path: str, name: str) -> tuple[str, str, str]:
    leaf = pki.FleetCa(path).leaf(f"{name}/host", [name])
    return name, leaf.ca, leaf.certificate


# ------------------------------------------------------------------------------------------------- refusals


@pytest.mark.parametrize("name", ["", "under score", "a/b", "münchen", "-x", "a" * 64, "*.", "*", "a..b"])
def test_names_that_no_certificate_can_carry(tmp_path: pathlib.Path, name: str) -> None:
    with pytest.raises(pki.PkiError, match="neither an address nor a DNS name"):
        authority(tmp_path).leaf("db1/host", ["db1", name])
    assert list(tmp_path.iterdir()) == []


def test_names_are_normalised() -> None:
    assert pki.normal_names(["DB1", "db1.", "FD00:0::1", "10.0.0.1", "*.Example.org", "a_b"]) == [
        "db1",
        "fd00::1",
        "10.0.0.1",
        "*.example.org",
        "a_b",
    ]
    with pytest.raises(pki.PkiError, match="at least one name"):
        pki.normal_names([])


@pytest.mark.parametrize("name", ["", "/etc/x", "../x", "a/../b", "a//b", ".hidden", "a b", "a/"])
def test_leaf_names_stay_inside_the_directory(tmp_path: pathlib.Path, name: str) -> None:
    with pytest.raises(pki.PkiError, match="cannot name a certificate"):
        authority(tmp_path).leaf(name, NAMES)


def test_errors_name_the_path_and_the_remedy(tmp_path: pathlib.Path) -> None:
    with pytest.raises(pki.PkiError, match="tls_ca_dir"):
        pki.FleetCa("")
    with pytest.raises(pki.PkiError, match="raise tls_days"):
        authority(tmp_path, days=30, renew_before=30)
    with pytest.raises(pki.PkiError, match=r"ca\.crt does not exist .* tls_ca_create"):
        authority(tmp_path, create=False).leaf("db1/host", NAMES)
    authority(tmp_path).leaf("db1/host", NAMES)
    key, crt = tmp_path / "pki/ca.key", tmp_path / "pki/ca.crt"
    key.chmod(0o640)
    with pytest.raises(pki.PkiError, match=f"chmod 600 {key}"):
        authority(tmp_path).leaf("db2/host", ["db2"])
    key.chmod(0o600)
    crt.write_text(authority(tmp_path / "other").leaf("x", ["x"]).ca)
    with pytest.raises(pki.PkiError, match="do not belong together"):
        authority(tmp_path).leaf("db2/host", ["db2"])
    key.write_text("no key")
    with pytest.raises(pki.PkiError, match="not a PEM private key") as caught:
        authority(tmp_path).leaf("db2/host", ["db2"])
    assert "no key" not in str(caught.value)


def test_unusable_directory_is_named(tmp_path: pathlib.Path) -> None:
    (tmp_path / "pki").write_text("a file")
    with pytest.raises(pki.PkiError, match=f"{tmp_path}/pki"):
        authority(tmp_path).leaf("db1/host", NAMES)


# ------------------------------------------------------------------------------------------ given certificates


class Given(t.NamedTuple):
    root: str
    chain: str
    key: str


@pytest.fixture(name="given", scope="module")
def _given(tmp_path_factory: pytest.TempPathFactory) -> Given:
    """A root, an intermediate and a leaf, made by openssl the way a company's own authority would."""
    path = tmp_path_factory.mktemp("given")

    def make(name: str, issuer: str, extensions: str) -> None:
        (path / f"{name}.ext").write_text(extensions)
        key, request, crt = (str(path / f"{name}.{kind}") for kind in ("key", "csr", "crt"))
        openssl("req", "-newkey", "rsa:2048", "-nodes", "-keyout", key, "-out", request, "-subj", f"/CN={name}")
        signer = (
            ("-CA", str(path / f"{issuer}.crt"), "-CAkey", str(path / f"{issuer}.key"), "-CAcreateserial")
            if issuer
            else ("-signkey", key)
        )
        extfile = str(path / f"{name}.ext")
        openssl("x509", "-req", "-in", request, "-out", crt, "-days", "90", *signer, "-extfile", extfile)

    make("root", "", "basicConstraints=critical,CA:true\nkeyUsage=critical,keyCertSign")
    make("middle", "root", "basicConstraints=critical,CA:true\nkeyUsage=critical,keyCertSign")
    make("leaf", "middle", "subjectAltName=DNS:www.example.org,DNS:*.api.example.org,IP:10.9.9.9")
    text = {name: (path / name).read_text() for name in ("root.crt", "middle.crt", "leaf.crt", "leaf.key")}
    return Given(text["root.crt"], text["leaf.crt"] + text["middle.crt"], text["leaf.key"])


def test_given_chain_is_accepted_as_it_is(given: Given) -> None:
    bundle = pki.check_given(
        given.chain, given.key, ca_pem=given.root, names=["www.example.org", "v1.api.example.org", "10.9.9.9"]
    )
    assert (bundle.certificate, bundle.private_key, bundle.ca) == (given.chain, given.key, given.root)
    assert bundle.names == ["www.example.org", "*.api.example.org", "10.9.9.9"]
    assert not bundle.changed


def test_given_certificate_with_another_key_is_refused(given: Given, tmp_path: pathlib.Path) -> None:
    other = authority(tmp_path).leaf("x", ["x"]).private_key
    with pytest.raises(pki.PkiError, match="does not belong to the certificate given for db1"):
        pki.check_given(given.chain, other, label="the certificate given for db1")


@pytest.mark.parametrize(("days", "message"), [(91, "expired on"), (-2, "is not valid before")])
def test_given_certificate_outside_its_time_is_refused(
    given: Given, monkeypatch: pytest.MonkeyPatch, days: int, message: str
) -> None:
    shift(monkeypatch, days=days)
    with pytest.raises(pki.PkiError, match=message):
        pki.check_given(given.chain, given.key)


def test_given_certificate_near_its_end_warns(given: Given, monkeypatch: pytest.MonkeyPatch) -> None:
    warnings: list[str] = []
    pki.check_given(given.chain, given.key, warn=warnings.append)
    shift(monkeypatch, days=80)
    pki.check_given(given.chain, given.key, warn=warnings.append)
    assert len(warnings) == 1 and "successor" in warnings[0]


@pytest.mark.parametrize("name", ["example.org", "a.b.api.example.org", "api.example.org", "10.9.9.8", "*.example.org"])
def test_given_certificate_that_misses_a_name_is_refused(given: Given, name: str) -> None:
    with pytest.raises(pki.PkiError, match="does not cover"):
        pki.check_given(given.chain, given.key, names=["www.example.org", name])


def test_given_certificate_of_another_authority_is_refused(given: Given, tmp_path: pathlib.Path) -> None:
    other = authority(tmp_path).leaf("x", ["x"]).ca
    with pytest.raises(pki.PkiError, match=r"certificate 2 in the chain of .* \(CN=middle\) is signed by CN=root"):
        pki.check_given(given.chain, given.key, ca_pem=other)
    leaf = pki.pem_blocks(given.chain)[0]
    with pytest.raises(pki.PkiError, match=r"certificate 1 in the chain .* signed by CN=middle"):
        pki.check_given(leaf, given.key, ca_pem=given.root)


def test_given_garbage_is_refused_without_repeating_it(given: Given) -> None:
    with pytest.raises(pki.PkiError, match="no BEGIN CERTIFICATE"):
        pki.check_given("what is this", given.key)
    with pytest.raises(pki.PkiError, match="damaged certificate"):
        pki.check_given("-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----", given.key)
    with pytest.raises(pki.PkiError, match="not a PEM private key") as caught:
        pki.check_given(given.chain, "hunter2")
    assert "hunter2" not in str(caught.value)
    encrypted = openssl("pkey", "-aes256", "-passout", "pass:x", stdin=given.key)
    with pytest.raises(pki.PkiError, match="is encrypted"):
        pki.check_given(given.chain, encrypted)
    with pytest.raises(pki.PkiError, match="holds no PEM certificate"):
        pki.check_given(given.chain, given.key, ca_pem="nothing")


# ------------------------------------------------------------------------------------------------- the lookup


def run_lookup(terms: list[str], variables: dict[str, t.Any] | None = None, **options: t.Any) -> list[dict[str, t.Any]]:
    plugin = fleet_certificate.LookupModule()
    plugin._load_name = "vmfleet.ops.fleet_certificate"
    known = yaml.safe_load(fleet_certificate.DOCUMENTATION)["options"]
    config.initialize_plugin_configuration_definitions("lookup", plugin._load_name, known)
    return plugin.run(terms, variables=variables, **options)


def test_lookup_issues_and_returns_a_dictionary_for_each_term(tmp_path: pathlib.Path) -> None:
    directory = str(tmp_path / "pki")
    first, second = run_lookup(["a/host", "b/host"], names=["a", "b"], ca_dir=directory)
    assert first["changed"] and second["changed"] and first["certificate"] != second["certificate"]
    assert first["pem"] == first["certificate"] + first["private_key"]
    assert first["ca"] == second["ca"] == "".join(first["ca_certificates"])
    shown = openssl("x509", "-noout", "-sha256", "-fingerprint", stdin=first["certificate"])
    assert first["fingerprint"] in shown.replace(":", "").lower()
    assert run_lookup(["a/host"], names=["a", "b"], ca_dir=directory) == [first | {"changed": False}]


def test_lookup_in_check_mode_gives_one_answer_and_writes_nothing(tmp_path: pathlib.Path) -> None:
    options: dict[str, t.Any] = {"names": ["a"], "ca_dir": str(tmp_path / "pki")}
    first = run_lookup(["a/host"], {"ansible_check_mode": True}, **options)
    assert first[0]["changed"]
    assert run_lookup(["a/host"], {"ansible_check_mode": True}, **options) == first
    assert list(tmp_path.iterdir()) == []


def test_lookup_checks_a_given_certificate(given: Given) -> None:
    found = run_lookup(["www"], certificate=given.chain, private_key=given.key, ca=given.root)
    assert found[0]["certificate"] == given.chain
    assert not found[0]["changed"]
    with pytest.raises(AnsibleLookupError, match="private_key is empty for www"):
        run_lookup(["www"], certificate=given.chain)
    with pytest.raises(AnsibleLookupError, match="does not cover other"):
        run_lookup(["www"], certificate=given.chain, private_key=given.key, names=["other"])
