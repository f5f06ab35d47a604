import sqlite3
from collections.abc import Iterator
from pathlib import Path

import pytest

from proto.messages import Forward, Lease, Zone, ZoneRecord
from supervisor.errors import StartError
from supervisor.state import State

LEASE = Lease("default", "192.168.127.2", "52:54:00:00:00:01", 1000.5, "box")
FORWARD = Forward(":80", "192.168.127.2:80")
ZONE = Zone("test.internal.", (ZoneRecord("1.2.3.4", name="a"), ZoneRecord("1.2.3.5", regexp="^b")), "9.9.9.9")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "moorage.db"


@pytest.fixture
def state(path: Path) -> Iterator[State]:
    state = State(path)
    yield state
    state.close()


def test_what_is_saved_is_there_after_reopening(path: Path) -> None:
    state = State(path)
    state.save_lease(LEASE)
    state.save_forward(FORWARD)
    state.save_zone("default", ZONE)
    state.close()
    state = State(path)
    assert state.leases("default") == [LEASE]
    assert state.leases("other") == []
    assert state.forwards() == [FORWARD]
    assert state.zones("default") == [ZONE]
    state.close()


def test_a_lease_replaces_those_of_its_mac_and_of_its_address(state: State) -> None:
    state.save_lease(LEASE)
    state.save_lease(Lease("default", "192.168.127.3", LEASE.mac, 1.0))
    moved = Lease("default", "192.168.127.3", "52:54:00:00:00:02", 2.0)
    state.save_lease(moved)
    assert state.leases("default") == [moved]


def test_what_is_deleted_is_gone(state: State) -> None:
    state.save_lease(LEASE)
    state.save_forward(FORWARD)
    state.delete_lease("default", LEASE.mac)
    state.delete_forward("tcp", ":80")
    assert state.leases("default") == []
    assert state.forwards() == []


def test_a_state_of_the_release_before_is_brought_up_to_date(path: Path) -> None:
    old = sqlite3.connect(path)
    old.executescript(
        "CREATE TABLE forwards (protocol TEXT NOT NULL, local TEXT NOT NULL, remote TEXT NOT NULL, network TEXT NOT "
        "NULL, PRIMARY KEY (protocol, local)) STRICT; PRAGMA user_version = 1;"
        "INSERT INTO forwards VALUES ('tcp', ':80', '192.168.127.2:80', 'default');"
    )
    old.close()
    state = State(path)
    assert state.forwards() == [FORWARD]
    state.save_forward(Forward(":81", "192.168.127.2:80", network="tenants", vm="52:54:00:00:00:01"))
    assert state.forwards()[1].vm == "52:54:00:00:00:01"
    state.close()


def test_a_changed_zone_keeps_its_place(state: State) -> None:
    for name in ("a.", "b.", "a."):
        state.save_zone("default", Zone(name))
    assert [zone.name for zone in state.zones("default")] == ["a.", "b."]


def test_a_state_of_a_newer_release_is_refused(path: Path) -> None:
    db = sqlite3.connect(path)
    db.execute("PRAGMA user_version = 99")
    db.close()
    with pytest.raises(StartError, match=r"newer Moorage \(schema 99"):
        State(path)


def test_a_file_that_is_no_database_is_named(path: Path) -> None:
    path.write_bytes(b"nonsense" * 1000)
    with pytest.raises(StartError, match=str(path)):
        State(path)


def test_a_write_that_fails_is_logged_and_survived(path: Path, state: State, caplog: pytest.LogCaptureFixture) -> None:
    db = sqlite3.connect(path)
    db.execute("DROP TABLE leases")
    db.close()
    state.save_lease(LEASE)
    assert "will not survive a restart" in caplog.text


def test_a_damaged_zone_is_left_out(path: Path, state: State, caplog: pytest.LogCaptureFixture) -> None:
    state.save_zone("default", ZONE)
    db = sqlite3.connect(path)
    with db:
        db.execute("INSERT INTO zones VALUES ('default', 'x.', '{}')")
    db.close()
    assert state.zones("default") == [ZONE]
    assert "x." in caplog.text
