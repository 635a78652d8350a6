# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""The verifier is held against RFC 7677's exchange and against what PostgreSQL itself stored."""

from __future__ import annotations

import base64
import hashlib
import hmac

import pytest
from ansible.errors import AnsibleFilterError
from ansible_collections.vmfleet.ops.plugins.filter import scram

# pg_authid.rolpassword of PostgreSQL 15.18 after ALTER ROLE ... PASSWORD '<clear text>'.
STORED_BY_POSTGRESQL = {
    "pencil": (
        "SCRAM-SHA-256$4096:Xbcxt9SSWmA1Xz8YyUPvgw=="
        "$NIhSAQPejQ8rDTlcrLavugUZjwtqLxD41S6FNZ+76w4=:/L6vpvmIr4j6quXNKGqNBZu3Op9uaunfRn8hoxxl8Og="
    ),
    " leading and 'quotes\\\" ": (
        "SCRAM-SHA-256$4096:/187fP6QI6oDvItjTiLZnA=="
        "$xoXmMyS4q1K3XZ3EE6qdisVapdn011pyIBFF0BNFmng=:8nCZ3BhYxDcpA2eJfUCR0zs6hyOqTeV7CmX1KB81WWU="
    ),
    "p\u00e4ssw\u00f6rd": (
        "SCRAM-SHA-256$4096:wJLzTpe5Qkcfbc3XgwbUZw=="
        "$N+PsrGaL5tJvj3j8db9wgBGkOTR3JlT+KD5pqwi77q4=:zckaOTohYmVtcp+pt07s8UpqbjEnngzytZjCKKg+c44="
    ),
    "I\u00adX": (
        "SCRAM-SHA-256$4096:5U+MjtcayCTApvoDrQfGwg=="
        "$hIQuK0TUmGrX7185WupXYLRvpmSuvvCJfOjwthGbSUw=:dAr76JQIv8t7Ozb8ELXyxrR8Onvx0kYzhG3Uyt7yE88="
    ),
    "\u00a0nbsp": (
        "SCRAM-SHA-256$4096:PKfQXlTBkXBpQnYajVI/gg=="
        "$wAlsALcSlELlnFJLy9x1cdlA4psBSmwrQjWCsz1aJcY=:z4LtbBA7kzLnAIxWw53udZ2tcMXglVYqb3FQkoX3rtI="
    ),
    "\u2168": (
        "SCRAM-SHA-256$4096:1g4XtQ+Xb7C8/ju7zJTGow=="
        "$fzGS/sCPZ7UmhiaMADy8d/EoYTMrp3R/yk7FyIx+kzA=:5lF/hb4IXGNyJXUPviHBuAPO/Ks84eI82s15iDkhbUs="
    ),
    "\u0007bell": (
        "SCRAM-SHA-256$4096:dBwR6vJFUu8HDO288to4Mg=="
        "$96P0CMEd4KwQuUhka9icEwGklynT4CyddcFiGr/4eWQ=:zeaSR2HwC1SkwRuWOLe2QW75RfoU7kgD8EFR+Fkh368="
    ),
    "bell\u0007\u00e9": (
        "SCRAM-SHA-256$4096:OgKB6DUaWIcvWTNWJS8RRw=="
        "$NEKUSULShQ/lP/jqtMYxgfsxSWkT0VKuk4iTsKWJc/0=:rwcz/lvuxSytlGz4r1/I1J5IMJWcR+/aqGVnCPq2Cf8="
    ),
    "\u06271": (
        "SCRAM-SHA-256$4096:R5j7lGM54+e8L7Z5r8E0SQ=="
        "$vNM8dZT+2pxI/iwm2eN9iq0WP0csfxSFCqbIqjn8RGc=:Olf7+3w5wKg976VJ/G50vCvE67EIrfxTeflww1PG1XE="
    ),
    "\u0627a\u0628": (
        "SCRAM-SHA-256$4096:GnuRRsfvIGZVn4n6BIXThQ=="
        "$fizUzpfQKO7mvjLnNCPuqn/SxDe10FtEGnzA1mSO27I=:Nh08JaXkxhH87GAOzUankTFo5VcVENd2ok+kRoE/rA0="
    ),
    "\U0001f511 new emoji": (
        "SCRAM-SHA-256$4096:Esz1YwOtyRPZxSlReHI4hA=="
        "$HAo8jg/XLv9s3mxwNtwLb/2g6sS4PZNSvX4asQ/ddj0=:DjrZ8vyHuFXJYCA0YbYwbGKejD/Jr/7zWluot029lkE="
    ),
    "\u0221 unassigned in 3.2": (
        "SCRAM-SHA-256$4096:w9JUWs+a8I/WT7elkUtciQ=="
        "$GKCXuzruydLShs8tAyWrvlf/iQnp0f9cUsttDRLy0ns=:T3v4lGfSr+4fIgWy1LhzJL6N78HEhswG1ysT6IThEVc="
    ),
    "\u00aa": (
        "SCRAM-SHA-256$4096:S6zP9YEnIOQzwzpA83XOIg=="
        "$+QDmx8wUr8a4NoixynVETcTtzrnx8FSslKL/1gw+lvg=:GZYXSi9thk+AS3J1CCNwQQxRUW+S0yy8R2Ijc9WopWA="
    ),
    "\ufb01": (
        "SCRAM-SHA-256$4096:9RAbXG9q+f5+7XejHfY1AQ=="
        "$7h8E9u0dIJIohQeVQZajeMLzXjySs//jR8DK8JHXnsY=:IEOqmxyBHIaVxKZ/wbWBdNKeRXHrUW2OHxHlNGjEhFU="
    ),
}


@pytest.mark.parametrize("password", STORED_BY_POSTGRESQL)
def test_same_verifier_as_postgresql(password: str) -> None:
    stored = STORED_BY_POSTGRESQL[password]
    salt = base64.b64decode(stored.split(":")[1].split("$")[0])
    assert scram._verifier(password, salt, 4096) == stored


def test_exchange_of_rfc_7677() -> None:
    verifier = scram._verifier("pencil", base64.b64decode("W22ZaJ0SNY7soEsUEjb6gQ=="), 4096)
    stored_key, server_key = (base64.b64decode(part) for part in verifier.split("$")[2].split(":"))
    nonce = "rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0"
    auth_message = (
        f"n=user,r=rOprNGfwEbeRWgbNEkqO,r={nonce},s=W22ZaJ0SNY7soEsUEjb6gQ==,i=4096,c=biws,r={nonce}"
    ).encode()
    proof = base64.b64decode("dHzbZapWIk4jUhN+Ute9ytag9zjfMHgsqmmiz7AndVQ=")
    signature = hmac.digest(stored_key, auth_message, "sha256")
    client_key = bytes(left ^ right for left, right in zip(proof, signature))
    assert hashlib.sha256(client_key).digest() == stored_key
    assert base64.b64encode(hmac.digest(server_key, auth_message, "sha256")) == (
        b"6rriTRBi23WpRR/wtup+mMhUZUn/dB5nLTJRsjl95G4="
    )


def test_same_arguments_same_verifier() -> None:
    verifier = scram.scram_sha_256("secret", "app", "supernova")
    assert verifier == scram.scram_sha_256("secret", "app", "supernova")
    assert verifier.startswith("SCRAM-SHA-256$4096:")


def salt_of(verifier: str) -> str:
    return verifier.split(":")[1].split("$")[0]


def test_salt_depends_on_names_alone() -> None:
    salt = salt_of(scram.scram_sha_256("secret", "app", "supernova"))
    assert salt == salt_of(scram.scram_sha_256("other", "app", "supernova"))
    assert salt != salt_of(scram.scram_sha_256("secret", "owner", "supernova"))
    assert salt != salt_of(scram.scram_sha_256("secret", "app", "staging"))
    assert salt_of(scram.scram_sha_256("x", "ab", "c")) != salt_of(scram.scram_sha_256("x", "b", "ca"))


def test_verifier_stays_what_it_was() -> None:
    """A change here would change every role of every fleet at its next run."""
    assert scram.scram_sha_256("secret", "app", "supernova") == (
        "SCRAM-SHA-256$4096:P8uWszz/auu02vjup8Gv+A=="
        "$N5sMFR3aiMenC7ITbMc1VOM4kfjyOTsLYP0ZsyQaZG0=:6N98PHMXfYe11fF8XA2aFbn+zb2/i6hzDBHBp8K1Cww="
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("", "app", "c"), "password"),
        (("p", "", "c"), "role"),
        (("p", "app", ""), "cluster"),
        ((7, "app", "c"), "password"),
        (("secret\x00", "app", "c"), "NUL"),
        (("secret", "app", "c", 1000), "4096"),
        (("p", "app", "c", True), "4096"),
    ],
)
def test_bad_arguments_are_named_and_the_password_is_not(arguments: tuple[object, ...], message: str) -> None:
    with pytest.raises(AnsibleFilterError, match=message) as failure:
        scram.scram_sha_256(*arguments)  # type: ignore[arg-type]
    assert "secret" not in str(failure.value)


def test_filter_is_offered() -> None:
    assert scram.FilterModule().filters() == {"scram_sha_256": scram.scram_sha_256}
