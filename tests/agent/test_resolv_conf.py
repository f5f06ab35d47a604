"""The file is replaced, and put back."""

from __future__ import annotations

import os
from ipaddress import IPv4Address
from pathlib import Path

import pytest

from agent.resolv_conf import ResolvConf

SERVER = IPv4Address("192.168.127.1")
WRITTEN = "search lab.test example.test\nnameserver 192.168.127.1\n"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "resolv.conf"


def write(conf: ResolvConf) -> None:
    conf.write([SERVER], ["lab.test", "example.test"])


def test_servers_and_domains_are_written_and_what_was_there_comes_back(path: Path) -> None:
    path.write_text("nameserver 192.0.2.53\n")
    conf = ResolvConf(path)
    write(conf)
    assert path.read_text() == WRITTEN
    assert path.stat().st_mode & 0o777 == 0o644
    write(conf)
    conf.restore()
    assert path.read_text() == "nameserver 192.0.2.53\n"
    assert os.listdir(path.parent) == ["resolv.conf"]


def test_where_there_was_no_file_there_is_none_again(path: Path) -> None:
    conf = ResolvConf(path)
    write(conf)
    conf.restore()
    assert not path.exists()


def test_a_symbolic_link_is_replaced_and_what_it_leads_to_is_left_alone(path: Path, tmp_path: Path) -> None:
    stub = tmp_path / "stub.conf"
    stub.write_text("nameserver 127.0.0.53\n")
    path.symlink_to("stub.conf")
    conf = ResolvConf(path)
    write(conf)
    assert (path.is_symlink(), path.read_text()) == (False, WRITTEN)
    conf.restore()
    assert os.readlink(path) == "stub.conf"
    assert stub.read_text() == "nameserver 127.0.0.53\n"


def test_what_another_program_has_written_since_stays(path: Path) -> None:
    path.write_text("nameserver 192.0.2.53\n")
    conf = ResolvConf(path)
    write(conf)
    path.write_text("nameserver 198.51.100.53\n")
    conf.restore()
    assert path.read_text() == "nameserver 198.51.100.53\n"


def test_without_servers_the_file_stays_as_it_is(path: Path) -> None:
    conf = ResolvConf(path)
    conf.write([], ["lab.test"])
    conf.restore()
    assert not path.exists()


def test_no_more_servers_are_written_than_are_read(path: Path) -> None:
    ResolvConf(path).write([SERVER] * 5, [])
    assert path.read_text() == "nameserver 192.168.127.1\n" * 3


def test_where_the_directory_takes_no_new_file_the_old_one_is_written_through(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = path.with_name("target")
    target.write_text("nameserver 192.0.2.53\n")
    path.symlink_to("target")

    def busy(*_: object) -> None:
        raise OSError("a mount point cannot be replaced")

    monkeypatch.setattr(os, "replace", busy)
    conf = ResolvConf(path)
    write(conf)
    assert target.read_text() == WRITTEN
    conf.restore()
    assert target.read_text() == "nameserver 192.0.2.53\n"
    assert sorted(os.listdir(path.parent)) == ["resolv.conf", "target"]
