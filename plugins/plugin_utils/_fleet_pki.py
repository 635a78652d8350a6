# Copyright: vmfleet.ops maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""The fleet's certificate authority, kept on the controller, and the check of certificates from elsewhere.

Layout of the directory::

    ca.crt ca.key           the authority; certificates after the first one in ca.crt are only handed on as trusted
    issued/<name>.crt       a leaf, its key beside it in .key
    issued/<name>.json      what the leaf is good for, so that a re-run needs no cryptography to tell
    .lock                   held by whoever writes

A leaf is written key, certificate, record, each by rename; the record carries the digests of the other two, so a run
that died half way leaves a set which does not match and is issued again.
"""

from __future__ import annotations

import contextlib
import datetime
import fcntl
import hashlib
import ipaddress
import json
import os
import re
import stat
import tempfile
import typing as t

if t.TYPE_CHECKING:
    from cryptography import x509
    from cryptography.hazmat.primitives.asymmetric import ec

_PEM_BLOCK = re.compile(r"-----BEGIN CERTIFICATE-----.*?-----END CERTIFICATE-----", re.DOTALL)
_DNS_NAME = re.compile(r"(\*\.)?[a-z0-9_]([a-z0-9_-]{0,61}[a-z0-9_])?(\.[a-z0-9_]([a-z0-9_-]{0,61}[a-z0-9_])?)*\.?")
_LEAF_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.:@-]*(/[A-Za-z0-9_][A-Za-z0-9_.:@-]*)*")
_RECORD_VERSION = 1
# Clocks of freshly booted hosts lag; a certificate that is not valid yet is the harder failure to understand.
_BACKDATE = datetime.timedelta(hours=1)


class PkiError(Exception):
    """Something the operator has to put right; the text names the path and the remedy."""


class Bundle(t.NamedTuple):
    """A certificate with its key, and the authority that clients need to trust."""

    certificate: str
    private_key: str
    ca: str
    names: list[str]
    not_after: datetime.datetime
    fingerprint: str
    changed: bool

    def as_result(self) -> dict[str, t.Any]:
        return {
            "certificate": self.certificate,
            "private_key": self.private_key,
            "pem": self.certificate + self.private_key,
            "ca": self.ca,
            "ca_certificates": pem_blocks(self.ca),
            "names": self.names,
            "not_after": _iso(self.not_after),
            "fingerprint": self.fingerprint,
            "changed": self.changed,
        }


def now() -> datetime.datetime:
    return datetime.datetime.now(datetime.timezone.utc).replace(microsecond=0)


def _iso(moment: datetime.datetime) -> str:
    return moment.strftime("%Y-%m-%dT%H:%M:%SZ")


def _from_iso(text: str) -> datetime.datetime:
    return datetime.datetime.strptime(text, "%Y-%m-%dT%H:%M:%SZ").replace(tzinfo=datetime.timezone.utc)


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def pem_blocks(text: str) -> list[str]:
    """The certificates of a PEM text, each ending in a newline; what stands between them is dropped."""
    return [block + "\n" for block in _PEM_BLOCK.findall(text)]


def normal_names(names: t.Iterable[str]) -> list[str]:
    """Names as they are put into a certificate: lower case, addresses in their short form, no doubles, order kept."""
    result: list[str] = []
    for raw in names:
        name = str(raw).strip().lower()
        try:
            name = str(ipaddress.ip_address(name))
        except ValueError:
            if len(name) > 253 or not _DNS_NAME.fullmatch(name):
                raise PkiError(
                    f"{raw!r} is neither an address nor a DNS name, so no certificate can carry it;"
                    " write international names in their xn-- form"
                ) from None
            name = name.rstrip(".")
        if name not in result:
            result.append(name)
    if not result:
        raise PkiError("a certificate needs at least one name")
    return result


def _covers(pattern: str, name: str) -> bool:
    if pattern == name:
        return True
    return pattern.startswith("*.") and name.partition(".")[2] == pattern[2:] and not name.startswith("*.")


# ---------------------------------------------------------------------------------------------------- files


def _read(path: str) -> str | None:
    try:
        with open(path, encoding="ascii") as handle:
            return handle.read()
    except FileNotFoundError:
        return None
    except (OSError, UnicodeDecodeError) as exc:
        raise PkiError(f"cannot read {path}: {exc}; the user who runs Ansible has to own it") from exc


def _write(path: str, text: str, mode: int) -> None:
    folder = os.path.dirname(path)
    descriptor, temporary = tempfile.mkstemp(dir=folder, prefix=".new-")
    try:
        with os.fdopen(descriptor, "w", encoding="ascii") as handle:
            os.fchmod(handle.fileno(), mode)
            handle.write(text)
            handle.flush()
            os.fsync(handle.fileno())
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary)
        raise
    directory = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)


# --------------------------------------------------------------------------------------------- certificates


def _common_name(name: str) -> x509.Name:
    from cryptography import x509
    from cryptography.x509.oid import NameOID

    # The field ends at 64 characters; clients read the alternative names anyway.
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name[:64])])


def _key_pem(key: ec.EllipticCurvePrivateKey, passphrase: str) -> str:
    from cryptography.hazmat.primitives import serialization

    encryption: serialization.KeySerializationEncryption = serialization.NoEncryption()
    if passphrase:
        encryption = serialization.BestAvailableEncryption(passphrase.encode())
    return key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, encryption).decode()


def _certificate_pem(certificate: x509.Certificate) -> str:
    from cryptography.hazmat.primitives import serialization

    return certificate.public_bytes(serialization.Encoding.PEM).decode()


def _not_after(certificate: x509.Certificate) -> datetime.datetime:
    # cryptography before 42 knows only the naive form.
    moment = getattr(certificate, "not_valid_after_utc", None) or certificate.not_valid_after
    return t.cast(datetime.datetime, moment.replace(tzinfo=datetime.timezone.utc))


def _not_before(certificate: x509.Certificate) -> datetime.datetime:
    moment = getattr(certificate, "not_valid_before_utc", None) or certificate.not_valid_before
    return t.cast(datetime.datetime, moment.replace(tzinfo=datetime.timezone.utc))


def _fingerprint(certificate: x509.Certificate) -> str:
    from cryptography.hazmat.primitives import hashes

    return certificate.fingerprint(hashes.SHA256()).hex()


def _public_bytes(key: t.Any) -> bytes:
    from cryptography.hazmat.primitives import serialization

    return t.cast(
        bytes,
        key.public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo),
    )


def _load_certificate(pem: str, where: str) -> x509.Certificate:
    from cryptography import x509

    blocks = pem_blocks(pem)
    if not blocks:
        raise PkiError(f"{where} holds no PEM certificate (no BEGIN CERTIFICATE line)")
    try:
        return x509.load_pem_x509_certificate(blocks[0].encode())
    except ValueError as exc:
        raise PkiError(f"{where} holds a damaged certificate: {exc}") from exc


def _load_key(pem: str, passphrase: str, where: str) -> t.Any:
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives import serialization

    try:
        return serialization.load_pem_private_key(pem.encode(), passphrase.encode() if passphrase else None)
    except TypeError:
        if passphrase:
            raise PkiError(f"{where} is not encrypted, but a passphrase is set; remove one of the two") from None
        raise PkiError(f"{where} is encrypted and no passphrase is set for it") from None
    except (ValueError, UnsupportedAlgorithm):
        # The library's text can quote what it read.
        raise PkiError(f"{where} is not a PEM private key, is damaged, or the passphrase is wrong") from None


def _names_of(certificate: x509.Certificate) -> list[str]:
    from cryptography import x509

    try:
        extension = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName)
    except x509.ExtensionNotFound:
        return []
    names = [name.lower() for name in extension.value.get_values_for_type(x509.DNSName)]
    return names + [str(address) for address in extension.value.get_values_for_type(x509.IPAddress)]


# ------------------------------------------------------------------------------------------- the authority


class Authority(t.NamedTuple):
    certificate: x509.Certificate
    key: t.Any
    pem: str


class FleetCa:
    """The authority of one directory; `read_only` answers from memory and leaves the controller as it is."""

    def __init__(
        self,
        path: str,
        *,
        days: int = 397,
        renew_before: int = 30,
        ca_days: int = 3650,
        passphrase: str = "",
        create: bool = True,
        read_only: bool = False,
        warn: t.Callable[[str], None] = lambda text: None,
    ) -> None:
        if not path:
            raise PkiError(
                "the directory of the fleet's certificate authority is not set; set tls_ca_dir to a directory"
                " of the controller that stays (the default needs an inventory that is a file or a directory)"
            )
        if days <= renew_before:
            raise PkiError(
                f"certificates valid for {days} days which are renewed {renew_before} days before their end would be"
                " renewed at every run; raise tls_days or lower tls_renew_before_days"
            )
        self.path = os.path.abspath(os.path.expanduser(path))
        self.days = days
        self.renew_before = datetime.timedelta(days=renew_before)
        self.ca_days = ca_days
        self.passphrase = passphrase
        self.create = create
        self.read_only = read_only
        self.warn = warn

    def leaf(self, name: str, names: t.Iterable[str]) -> Bundle:
        """The stored leaf of that name when it is still good, else a new one."""
        if not _LEAF_NAME.fullmatch(name) or ".." in name:
            raise PkiError(f"{name!r} cannot name a certificate: letters, digits and _ . : @ - only, parts joined by /")
        wanted = normal_names(names)
        stored = self._stored(name, wanted)
        if stored:
            return stored
        if self.read_only:
            return self._issue(self._authority(), wanted)
        with self._lock():
            # Another fork may have issued it while this one waited.
            stored = self._stored(name, wanted)
            if stored:
                return stored
            fresh = self._issue(self._authority(), wanted)
            self._store(name, fresh)
            return fresh

    def _file(self, name: str) -> str:
        return os.path.join(self.path, name)

    def _stored(self, name: str, wanted: list[str]) -> Bundle | None:
        ca = _read(self._file("ca.crt"))
        certificate = _read(self._file(f"issued/{name}.crt"))
        key = _read(self._file(f"issued/{name}.key"))
        text = _read(self._file(f"issued/{name}.json"))
        if ca is None or certificate is None or key is None or text is None:
            return None
        issuers = pem_blocks(ca)
        try:
            record = json.loads(text)
            not_after = _from_iso(record["not_after"])
            good = (
                record["version"] == _RECORD_VERSION
                and set(record["names"]) == set(wanted)
                and record["certificate"] == _sha256(certificate)
                and record["private_key"] == _sha256(key)
                and issuers
                and record["issuer"] == _sha256(issuers[0])
                and not_after - now() > self.renew_before
            )
            fingerprint = str(record["fingerprint"])
        except (ValueError, KeyError, TypeError):
            return None
        if not good:
            return None
        return Bundle(certificate, key, "".join(issuers), list(record["names"]), not_after, fingerprint, False)

    def _store(self, name: str, fresh: Bundle) -> None:
        path = self._file(f"issued/{name}")
        try:
            folder = self.path
            for part in ("issued", *name.split("/")[:-1]):
                folder = os.path.join(folder, part)
                # makedirs would give the folders in between the mode of the umask.
                with contextlib.suppress(FileExistsError):
                    os.mkdir(folder, 0o700)
            _write(f"{path}.key", fresh.private_key, 0o600)
            _write(f"{path}.crt", fresh.certificate, 0o600)
            record = {
                "version": _RECORD_VERSION,
                "names": fresh.names,
                "not_after": _iso(fresh.not_after),
                "issuer": _sha256(pem_blocks(fresh.ca)[0]),
                "certificate": _sha256(fresh.certificate),
                "private_key": _sha256(fresh.private_key),
                "fingerprint": fresh.fingerprint,
            }
            _write(f"{path}.json", json.dumps(record, indent=2, sort_keys=True) + "\n", 0o600)
        except OSError as exc:
            raise PkiError(f"cannot write {path}.*: {exc}; the user who runs Ansible has to own {self.path}") from exc

    @contextlib.contextmanager
    def _lock(self) -> t.Iterator[None]:
        try:
            os.makedirs(self.path, mode=0o700, exist_ok=True)
            descriptor = os.open(self._file(".lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as exc:
            raise PkiError(
                f"cannot use {self.path} for the fleet's certificate authority: {exc};"
                " set tls_ca_dir to a directory that the user who runs Ansible may write"
            ) from exc
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield
        finally:
            os.close(descriptor)

    def _authority(self) -> Authority:
        crt, key = self._file("ca.crt"), self._file("ca.key")
        certificate_pem, key_pem = _read(crt), _read(key)
        if key_pem is None:
            if certificate_pem is not None:
                raise PkiError(
                    f"{key} is missing, so nothing can be issued; put it back, or move {crt} away to begin a new"
                    " authority (every host then gets a new certificate)"
                )
            return self._new_authority()
        if stat.S_IMODE(os.stat(key).st_mode) & 0o077:
            raise PkiError(f"{key} can be read by others than its owner; check who had access, then chmod 600 {key}")
        private = _load_key(key_pem, self.passphrase, key)
        if certificate_pem is None:
            # Written key first: a run that died in between left the key alone. The same key gives the same authority.
            return self._certify(private)
        certificate = _load_certificate(certificate_pem, crt)
        if _public_bytes(certificate.public_key()) != _public_bytes(private.public_key()):
            raise PkiError(f"{crt} and {key} do not belong together; put the matching pair back")
        if _not_after(certificate) - now() <= self.renew_before:
            raise PkiError(
                f"{crt} ends on {_iso(_not_after(certificate))}, too soon to issue from it; move ca.crt and ca.key away"
                " and run again for a new authority (append the old certificate to the new ca.crt to have both trusted)"
            )
        return Authority(certificate, private, "".join(pem_blocks(certificate_pem)))

    def _new_authority(self) -> Authority:
        from cryptography.hazmat.primitives.asymmetric import ec

        if not self.create:
            raise PkiError(
                f"{self._file('ca.crt')} does not exist and creating an authority is turned off; put the fleet's"
                " ca.crt and ca.key there, or set tls_ca_create to true for a new one"
            )
        private = ec.generate_private_key(ec.SECP256R1())
        if not self.read_only:
            try:
                # The directory holds keys, so it must not end up in the repository that the inventory is kept in.
                _write(self._file(".gitignore"), "*\n", 0o600)
                _write(self._file("ca.key"), _key_pem(private, self.passphrase), 0o600)
            except OSError as exc:
                raise PkiError(f"cannot write {self._file('ca.key')}: {exc}") from exc
        return self._certify(private)

    def _certify(self, private: t.Any) -> Authority:
        from cryptography import x509
        from cryptography.hazmat.primitives import hashes

        public = private.public_key()
        identifier = x509.SubjectKeyIdentifier.from_public_key(public)
        subject = _common_name(f"vmfleet fleet CA {identifier.digest.hex()[:8]}")
        usage = dict.fromkeys(
            (
                "digital_signature",
                "content_commitment",
                "key_encipherment",
                "data_encipherment",
                "key_agreement",
                "encipher_only",
                "decipher_only",
            ),
            False,
        )
        certificate = (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(subject)
            .public_key(public)
            .serial_number(x509.random_serial_number())
            .not_valid_before(now() - _BACKDATE)
            .not_valid_after(now() + datetime.timedelta(days=self.ca_days))
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .add_extension(x509.KeyUsage(key_cert_sign=True, crl_sign=True, **usage), critical=True)
            .add_extension(identifier, critical=False)
            .sign(private, hashes.SHA256())
        )
        pem = _certificate_pem(certificate)
        if not self.read_only:
            try:
                _write(self._file("ca.crt"), pem, 0o600)
            except OSError as exc:
                raise PkiError(f"cannot write {self._file('ca.crt')}: {exc}") from exc
        return Authority(certificate, private, pem)

    def _issue(self, authority: Authority, names: list[str]) -> Bundle:
        from cryptography import x509
        from cryptography.hazmat.primitives import hashes
        from cryptography.hazmat.primitives.asymmetric import ec
        from cryptography.x509.oid import ExtendedKeyUsageOID

        not_after = now() + datetime.timedelta(days=self.days)
        if not_after > _not_after(authority.certificate):
            not_after = _not_after(authority.certificate)
            self.warn(
                f"{self._file('ca.crt')} ends on {_iso(not_after)}, before the certificates issued from it would;"
                " plan a new authority"
            )
        private = ec.generate_private_key(ec.SECP256R1())
        public = private.public_key()
        usage = dict.fromkeys(
            (
                "content_commitment",
                "key_encipherment",
                "data_encipherment",
                "key_agreement",
                "key_cert_sign",
                "crl_sign",
                "encipher_only",
                "decipher_only",
            ),
            False,
        )
        alternatives: list[x509.GeneralName] = []
        for name in names:
            try:
                alternatives.append(x509.IPAddress(ipaddress.ip_address(name)))
            except ValueError:
                alternatives.append(x509.DNSName(name))
        certificate = (
            x509.CertificateBuilder()
            .subject_name(_common_name(names[0]))
            .issuer_name(authority.certificate.subject)
            .public_key(public)
            .serial_number(x509.random_serial_number())
            .not_valid_before(max(now() - _BACKDATE, _not_before(authority.certificate)))
            .not_valid_after(not_after)
            .add_extension(x509.SubjectAlternativeName(alternatives), critical=False)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(x509.KeyUsage(digital_signature=True, **usage), critical=True)
            .add_extension(
                # Both ways: replicas, poolers and balancers present theirs as clients too.
                x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]),
                critical=False,
            )
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(public), critical=False)
            .add_extension(
                x509.AuthorityKeyIdentifier.from_issuer_public_key(authority.key.public_key()), critical=False
            )
            .sign(authority.key, hashes.SHA256())
        )
        return Bundle(
            _certificate_pem(certificate),
            _key_pem(private, ""),
            authority.pem,
            names,
            not_after,
            _fingerprint(certificate),
            True,
        )


# ------------------------------------------------------------------------------- certificates from elsewhere


def check_given(
    certificate_pem: str,
    key_pem: str,
    *,
    ca_pem: str = "",
    names: t.Iterable[str] = (),
    renew_before: int = 30,
    label: str = "the given certificate",
    warn: t.Callable[[str], None] = lambda text: None,
) -> Bundle:
    """A certificate that somebody else issued, or PkiError when hosts could not serve with it."""
    chain = pem_blocks(certificate_pem)
    certificate = _load_certificate(certificate_pem, label)
    key = _load_key(key_pem, "", f"the private key of {label}")
    if _public_bytes(certificate.public_key()) != _public_bytes(key.public_key()):
        raise PkiError(
            f"the private key does not belong to {label}; give the pair that was issued together"
            " (the host's own certificate comes first, its intermediates after it)"
        )
    not_after = _not_after(certificate)
    if not_after <= now():
        raise PkiError(f"{label} expired on {_iso(not_after)}; give its successor")
    if _not_before(certificate) > now():
        raise PkiError(f"{label} is not valid before {_iso(_not_before(certificate))}; check the controller's clock")
    if not_after - now() <= datetime.timedelta(days=renew_before):
        warn(f"{label} ends on {_iso(not_after)}; give its successor soon")
    carried = _names_of(certificate)
    missing = [
        name
        for name in (normal_names(names) if names else [])
        if not any(_covers(pattern, name) for pattern in carried)
    ]
    if missing:
        raise PkiError(
            f"{label} does not cover {', '.join(missing)} (it carries {', '.join(carried) or 'no names'});"
            " clients would refuse it"
        )
    authorities = pem_blocks(ca_pem)
    if ca_pem.strip() and not authorities:
        raise PkiError(f"the authority given with {label} holds no PEM certificate")
    if authorities:
        _check_issuer(chain, authorities, label)
    return Bundle(
        "".join(chain),
        key_pem.strip() + "\n",
        "".join(authorities),
        carried,
        not_after,
        _fingerprint(certificate),
        False,
    )


def _check_issuer(chain: list[str], authorities: list[str], label: str) -> None:
    """The last certificate of the chain must be signed by (or be) an authority, each other one by the next."""
    links = [_load_certificate(pem, label) for pem in chain]
    anchors = [_load_certificate(pem, f"the authority of {label}") for pem in authorities]
    for position, link in enumerate(links):
        issuers = anchors if position == len(links) - 1 else [links[position + 1], *anchors]
        if not any(_signed(link, issuer) or link == issuer for issuer in issuers):
            raise PkiError(
                f"certificate {position + 1} in the chain of {label} ({link.subject.rfc4514_string()}) is signed by"
                f" {link.issuer.rfc4514_string()}, which is neither next in the chain nor among the given authorities;"
                " give the intermediates after the certificate and the root as the authority"
            )


def _signed(link: x509.Certificate, issuer: x509.Certificate) -> bool:
    from cryptography.exceptions import InvalidSignature

    if link.issuer != issuer.subject:
        return False
    check = getattr(link, "verify_directly_issued_by", None)
    if check is None:
        # cryptography before 40 compares names only.
        return True
    try:
        check(issuer)
    except (InvalidSignature, TypeError, ValueError):
        return False
    return True
