from pathlib import Path

import pytest

from supervisor import uuid_macs
from supervisor.state import State
from supervisor.uuid_macs import NIL, UuidMacs

ONE, OTHER = "c3d68012-0208-11ea-9fd7-f2189899ab08", "c3d68012-0208-11ea-9fd7-f2189899ab09"


def test_a_vm_keeps_its_mac_also_after_a_restart(tmp_path: Path) -> None:
    state = State(tmp_path / "db")
    macs = UuidMacs({}, state)
    mac = macs.mac_of(ONE)
    assert int(mac[:2], 16) & 3 == 2, "unicast, locally administered"
    assert macs.mac_of(ONE) == mac != macs.mac_of(OTHER)
    state.close()
    state = State(tmp_path / "db")
    assert UuidMacs({}, state).mac_of(ONE) == mac
    state.close()


def test_the_configured_mac_goes_before_the_remembered_one(tmp_path: Path) -> None:
    state = State(tmp_path / "db")
    UuidMacs({}, state).mac_of(ONE)
    assert UuidMacs({ONE: "5a:94:ef:e4:0c:ee"}, state).mac_of(ONE) == "5a:94:ef:e4:0c:ee"
    state.close()


def test_the_nil_uuid_is_nobody(tmp_path: Path) -> None:
    state = State(tmp_path / "db")
    macs = UuidMacs({}, state)
    assert macs.mac_of(NIL) != macs.mac_of(NIL)
    assert state.uuid_macs() == {}
    state.close()


def test_the_oldest_is_forgotten_when_there_are_too_many(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(uuid_macs, "MAX_UUIDS", 2)
    monkeypatch.setattr("supervisor.state.MAX_UUIDS", 2)
    state = State(tmp_path / "db")
    macs = UuidMacs({}, state)
    uuids = [ONE[:-1] + last for last in "123"]
    known = {uuid: macs.mac_of(uuid) for uuid in uuids}
    assert state.uuid_macs() == {uuid: known[uuid] for uuid in uuids[1:]}
    assert macs.mac_of(uuids[2]) == known[uuids[2]]
    assert macs.mac_of(uuids[0]) != known[uuids[0]]
    state.close()
