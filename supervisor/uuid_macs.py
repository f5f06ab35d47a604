"""Which MAC a VM has that is known by its UUID: the configured one, the remembered one, or a new one."""

from __future__ import annotations

import os
from collections.abc import Mapping

from supervisor.state import MAX_UUIDS, State

NIL = "00000000-0000-0000-0000-000000000000"
"""RFC 9562 5.9: says nothing of who the VM is."""


class UuidMacs:
    """The same UUID, the same MAC; also after a restart. UUIDs are lower-case text."""

    def __init__(self, configured: Mapping[str, str], state: State) -> None:
        self._configured = configured
        self._state = state
        self._remembered = state.uuid_macs()

    def mac_of(self, uuid: str) -> str:
        """The MAC of a VM."""
        known = self._configured.get(uuid) or self._remembered.get(uuid)
        if known is not None:
            return known
        mac = random_mac()
        if uuid != NIL:
            self._remember(uuid, mac)
        return mac

    def _remember(self, uuid: str, mac: str) -> None:
        self._remembered[uuid] = mac
        if len(self._remembered) > MAX_UUIDS:
            del self._remembered[next(iter(self._remembered))]
        self._state.save_uuid_mac(uuid, mac)


def random_mac() -> str:
    """A unicast MAC, locally administered (IEEE 802 8.4)."""
    first, *rest = os.urandom(6)
    return bytes([first & 0xFC | 0x02, *rest]).hex(":")
