# Copyright: vmfleet.ops maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Certificates for hosts: issued by the fleet's own authority, or given and checked."""

from __future__ import annotations

DOCUMENTATION = r"""
name: fleet_certificate
author: vmfleet.ops maintainers (@vmfleet)
version_added: 0.1.0
short_description: Certificates from the fleet's own authority, or given ones after a check
description:
  - Returns a certificate with its private key for a host or a site. Everything happens on the controller, with the
    C(cryptography) library that ansible-core itself depends on.
  - Without O(certificate), the fleet's authority in O(ca_dir) issues it (ECDSA P-256, server and client use). The
    authority is made on first use. What was issued is kept there and returned again, until the names change, fewer
    than O(renew_before) days are left, or the authority is another one.
  - With O(certificate), nothing is issued or stored. The certificate is refused when it has expired, when the key is
    not its key, when it does not cover O(names), or when O(ca) did not sign it.
  - In check mode nothing is written on the controller. A certificate that a real run would issue is issued in memory,
    and RV(_raw[].changed) is true.
  - Forks and parallel runs may use one directory at once; writing is serialised by a lock and done by rename.
options:
  _terms:
    description:
      - Names under which issued certificates are kept below O(ca_dir), for example C(db1/host). With O(certificate) the
        term is only used in messages.
    type: list
    elements: str
    required: true
  names:
    description:
      - DNS names and addresses for the certificate (subject alternative names). The first one becomes the common name.
      - Required unless O(certificate) is given.
    type: list
    elements: str
    default: []
  ca_dir:
    description:
      - Directory of the authority on the controller. It is made with mode 0700 and must outlive the run; whoever reads
        it can impersonate every host. A relative path starts at the working directory.
    type: str
    default: ""
  ca_passphrase:
    description: Encrypts the authority's private key in O(ca_dir).
    type: str
    default: ""
  ca_days:
    description: Days for which a new authority is valid.
    type: int
    default: 3650
  ca_create:
    description: Whether a missing authority is made. Turn it off where O(ca_dir) must already be there.
    type: bool
    default: true
  days:
    description: Days for which issued certificates are valid.
    type: int
    default: 397
  renew_before:
    description: Issue anew when fewer days than this are left. For a given certificate, warn.
    type: int
    default: 30
  certificate:
    description: A given certificate in PEM, followed by its intermediates.
    type: str
    default: ""
  private_key:
    description: The private key of O(certificate) in PEM, not encrypted. Keep it in a vault.
    type: str
    default: ""
  ca:
    description: The authority that signed O(certificate), in PEM. Without it the issuer is not checked.
    type: str
    default: ""
"""

EXAMPLES = r"""
- name: Give the host its certificate
  vmfleet.ops.converge:
    name: tls
    files:
      - dest: /etc/vmfleet/tls/host.key
        content: "{{ leaf.private_key }}"
        mode: "0640"
        sensitive: true
      - dest: /etc/vmfleet/tls/host.crt
        content: "{{ leaf.certificate }}"
  vars:
    leaf: "{{ lookup('vmfleet.ops.fleet_certificate', inventory_hostname ~ '/host',
      names=[inventory_hostname, ansible_host], ca_dir=inventory_dir ~ '/.pki') }}"

- name: Refuse a bought certificate that would not serve the site
  ansible.builtin.assert:
    that: checked.not_after is defined
  vars:
    checked: "{{ lookup('vmfleet.ops.fleet_certificate', 'www', names=['www.example.org'],
      certificate=www_certificate, private_key=www_private_key) }}"
"""

RETURN = r"""
_raw:
  description: One dictionary for each term.
  type: list
  elements: dict
  contains:
    certificate:
      description: The certificate in PEM, followed by its intermediates.
      type: str
    private_key:
      description: Its private key in PEM. A secret.
      type: str
    pem:
      description: Certificate, intermediates and private key in one, as HAProxy reads it. A secret.
      type: str
    ca:
      description: The authority that clients need to trust, in PEM. Empty for a given certificate without O(ca).
      type: str
    ca_certificates:
      description: The certificates of RV(_raw[].ca), one by one.
      type: list
      elements: str
    names:
      description: The names that the certificate carries.
      type: list
      elements: str
    not_after:
      description: The end of its validity in UTC.
      type: str
      sample: "2027-03-01T12:00:00Z"
    fingerprint:
      description: SHA-256 of the certificate, in hexadecimal.
      type: str
    changed:
      description: Whether it was issued just now, or would be in a real run.
      type: bool
"""

import typing as t

from ansible.errors import AnsibleLookupError
from ansible.plugins.lookup import LookupBase
from ansible.utils.display import Display
from ansible_collections.vmfleet.ops.plugins.plugin_utils import _fleet_pki as pki

display = Display()

# In check mode each issue makes another key. Templates of one task must see one answer, and a worker is one task.
_in_memory: dict[tuple[str, ...], dict[str, t.Any]] = {}


class LookupModule(LookupBase):
    """Thin: options in, dictionaries out."""

    def run(
        self, terms: list[str], variables: dict[str, t.Any] | None = None, **kwargs: t.Any
    ) -> list[dict[str, t.Any]]:
        self.set_options(var_options=variables, direct=kwargs)
        read_only = bool((variables or {}).get("ansible_check_mode", False))
        try:
            if self.get_option("certificate") or self.get_option("private_key"):
                return [self._given(str(term)) for term in terms]
            return [self._issued(str(term), read_only) for term in terms]
        except pki.PkiError as exc:
            raise AnsibleLookupError(f"fleet_certificate: {exc}") from exc

    def _given(self, term: str) -> dict[str, t.Any]:
        label = f"the certificate given for {term}"
        for option in ("certificate", "private_key"):
            if not self.get_option(option):
                raise pki.PkiError(f"{option} is empty for {term}, but its counterpart is set; give both or neither")
        return pki.check_given(
            self.get_option("certificate"),
            self.get_option("private_key"),
            ca_pem=self.get_option("ca"),
            names=self.get_option("names"),
            renew_before=self.get_option("renew_before"),
            label=label,
            warn=display.warning,
        ).as_result()

    def _issued(self, term: str, read_only: bool) -> dict[str, t.Any]:
        names = [str(name) for name in self.get_option("names")]
        authority = pki.FleetCa(
            self.get_option("ca_dir"),
            days=self.get_option("days"),
            renew_before=self.get_option("renew_before"),
            ca_days=self.get_option("ca_days"),
            passphrase=self.get_option("ca_passphrase"),
            create=self.get_option("ca_create"),
            read_only=read_only,
            warn=display.warning,
        )
        if not read_only:
            return authority.leaf(term, names).as_result()
        key = (authority.path, term, *names)
        if key not in _in_memory:
            _in_memory[key] = authority.leaf(term, names).as_result()
        return _in_memory[key]
