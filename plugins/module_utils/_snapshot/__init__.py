# Copyright (c) vmfleet.ops maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""The snapshot engine: one implementation for Ansible and for the host alone.

It needs Python 3.9 and its standard library. Imports are relative, so that it runs under any name: role backup puts it
on the host as ``vmfleet_backup``. How it is made: docs/snapshots.md.
"""
