"""What survives a restart: leases, MACs of UUIDs, and the forwards and zones added over the API. SQLite in WAL mode.

Reading happens at start, writing as things change. A write that fails (disk full) is logged and costs persistence of
that one thing; the service goes on.
"""

from __future__ import annotations

import logging
import sqlite3
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from proto.messages import Forward, Lease, Zone
from supervisor.errors import StartError

SCHEMA_VERSION = 4
_UUIDS = "CREATE TABLE uuids (uuid TEXT PRIMARY KEY, mac TEXT NOT NULL) STRICT;"
SCHEMA = f"""
CREATE TABLE leases (
    network TEXT NOT NULL, mac TEXT NOT NULL, ip TEXT NOT NULL, hostname TEXT NOT NULL,
    expires_at REAL NOT NULL,  -- Unix time
    PRIMARY KEY (network, mac), UNIQUE (network, ip)
) STRICT;
CREATE TABLE forwards (
    protocol TEXT NOT NULL, local TEXT NOT NULL, remote TEXT NOT NULL, network TEXT NOT NULL,
    vm TEXT NOT NULL DEFAULT '', source TEXT NOT NULL DEFAULT 'keep',
    PRIMARY KEY (protocol, local)
) STRICT;
CREATE TABLE zones (
    network TEXT NOT NULL, name TEXT NOT NULL, zone TEXT NOT NULL,  -- JSON of proto.messages.Zone
    PRIMARY KEY (network, name)
) STRICT;
{_UUIDS}
"""
UPGRADES = {
    1: "ALTER TABLE forwards ADD COLUMN vm TEXT NOT NULL DEFAULT '';",
    2: "ALTER TABLE forwards ADD COLUMN source TEXT NOT NULL DEFAULT 'keep';",
    3: _UUIDS,
}
"""What makes the schema of a release before into the one after it."""
MAX_UUIDS = 65536
"""Far more VMs than a host runs; a bound for one that attaches under ever new names."""
BUSY_TIMEOUT = 1.0
"""s; only a backup or a curious shell competes for the file."""

log = logging.getLogger(__name__)
_ZONE: TypeAdapter[Zone] = TypeAdapter(Zone)


class State:
    """The database. Raises StartError when it cannot be opened or was written by a newer release."""

    def __init__(self, path: Path) -> None:
        self._path = path
        try:
            self._db = sqlite3.connect(path, timeout=BUSY_TIMEOUT, isolation_level=None)
            try:
                self._open()
            except BaseException:
                self._db.close()
                raise
        except sqlite3.Error as error:
            raise StartError(f"cannot use the state in {path}: {error}") from error

    def close(self) -> None:
        """Close the database; nothing is lost without it either."""
        self._db.close()

    def leases(self, network: str) -> list[Lease]:
        """All leases of a network, expired ones too, in the order in which their MACs first had one."""
        rows = self._db.execute(
            "SELECT ip, mac, expires_at, hostname FROM leases WHERE network = ? ORDER BY rowid", (network,)
        )
        return [Lease(network, ip, mac, expires_at, hostname) for ip, mac, expires_at, hostname in rows]

    def save_lease(self, lease: Lease) -> None:
        """Remember a lease instead of any other of its MAC or of its address."""
        self._write(
            "DELETE FROM leases WHERE network = ? AND ip = ? AND mac <> ?", (lease.network, lease.ip, lease.mac)
        )
        self._write(
            "INSERT INTO leases (network, mac, ip, hostname, expires_at) VALUES (?, ?, ?, ?, ?) "
            "ON CONFLICT (network, mac) DO UPDATE "
            "SET ip = excluded.ip, hostname = excluded.hostname, expires_at = excluded.expires_at",
            (lease.network, lease.mac, lease.ip, lease.hostname, lease.expires_at),
        )

    def delete_lease(self, network: str, mac: str) -> None:
        """Forget a lease."""
        self._write("DELETE FROM leases WHERE network = ? AND mac = ?", (network, mac))

    def forwards(self) -> list[Forward]:
        """All forwards, in the order they were added."""
        rows = self._db.execute("SELECT local, remote, protocol, network, vm, source FROM forwards ORDER BY rowid")
        return [Forward(*row) for row in rows]

    def save_forward(self, forward: Forward) -> None:
        """Remember a forward."""
        self._write(
            "INSERT OR REPLACE INTO forwards (protocol, local, remote, network, vm, source) VALUES (?, ?, ?, ?, ?, ?)",
            (forward.protocol, forward.local, forward.remote, forward.network, forward.vm, forward.source),
        )

    def delete_forward(self, protocol: str, local: str) -> None:
        """Forget a forward."""
        self._write("DELETE FROM forwards WHERE protocol = ? AND local = ?", (protocol, local))

    def zones(self, network: str) -> list[Zone]:
        """All zones of a network, in the order they were first added."""
        rows = self._db.execute("SELECT name, zone FROM zones WHERE network = ? ORDER BY rowid", (network,))
        zones = []
        for name, text in rows:
            try:
                zones.append(_ZONE.validate_json(text))
            except ValidationError as error:
                log.error("zone %s in %s is damaged and left out: %s", name, self._path, error)
        return zones

    def save_zone(self, network: str, zone: Zone) -> None:
        """Remember a zone instead of the one of its name."""
        self._write(
            "INSERT INTO zones (network, name, zone) VALUES (?, ?, ?) "
            "ON CONFLICT (network, name) DO UPDATE SET zone = excluded.zone",
            (network, zone.name, _ZONE.dump_json(zone).decode()),
        )

    def delete_zone(self, network: str, name: str) -> None:
        """Forget a zone."""
        self._write("DELETE FROM zones WHERE network = ? AND name = ?", (network, name))

    def uuid_macs(self) -> dict[str, str]:
        """MAC by UUID, of all VMs that are known by one."""
        return dict(self._db.execute("SELECT uuid, mac FROM uuids"))

    def save_uuid_mac(self, uuid: str, mac: str) -> None:
        """Remember a VM's MAC; of the `MAX_UUIDS` before it the oldest is forgotten."""
        self._write("INSERT OR REPLACE INTO uuids (uuid, mac) VALUES (?, ?)", (uuid, mac))
        self._write("DELETE FROM uuids WHERE rowid <= (SELECT max(rowid) FROM uuids) - ?", (MAX_UUIDS,))

    def _open(self) -> None:
        self._db.execute("PRAGMA journal_mode = WAL")
        # In WAL mode NORMAL cannot corrupt, only lose the last moments before a power cut, and does not wait for disks.
        self._db.execute("PRAGMA synchronous = NORMAL")
        (version,) = self._db.execute("PRAGMA user_version").fetchone()
        if version > SCHEMA_VERSION:
            raise StartError(
                f"the state in {self._path} was written by a newer Moorage "
                f"(schema {version}; this release knows up to {SCHEMA_VERSION})"
            )
        steps = [SCHEMA] if version == 0 else [UPGRADES[step] for step in range(version, SCHEMA_VERSION)]
        if steps:
            script = " ".join(steps)
            self._db.executescript(f"BEGIN; {script} PRAGMA user_version = {SCHEMA_VERSION}; COMMIT;")

    def _write(self, statement: str, values: tuple[str | float, ...]) -> None:
        try:
            self._db.execute(statement, values)
        except sqlite3.Error as error:
            log.error("cannot write to %s: %s; this change will not survive a restart", self._path, error)
