"""Tap devices: their URLs, opening them in namespaces, and noticing that those are gone."""

from __future__ import annotations

import asyncio
import os
import socket
import subprocess
from collections.abc import Iterator
from urllib.parse import urlsplit

import pytest

from supervisor.attach.kinds import parse_listener
from supervisor.attach.listener import Attachment
from supervisor.attach.tap import TapEndpoint, TapListener
from supervisor.attach.tap_device import VNET_HEADER_LEN, open_device, set_up
from supervisor.errors import StartError
from tests.guests.namespace import Namespace
from tests.guests.waiting import wait_for
from tests.supervisor.attach.listening import MTU, listening
from tests.worker.vnet import NEEDS_CSUM


@pytest.fixture
def namespace() -> Iterator[Namespace]:
    with Namespace("tap") as namespace:
        yield namespace


def path_of(namespace: Namespace) -> str:
    return f"/run/netns/{namespace.name}"


def link_of(namespace: Namespace, name: str = "tap0") -> str:
    return namespace.run("ip", "-details", "link", "show", name).stdout


async def attach(endpoint: TapEndpoint) -> Attachment:
    async with listening(TapListener(endpoint)) as bed:
        return await bed.attachment()


# --- URLs


@pytest.mark.parametrize(
    ("url", "endpoint"),
    [
        ("tap:///tap0", TapEndpoint("tap0")),
        ("tap:///eth0.1?netns=/run/netns/web", TapEndpoint("eth0.1", "/run/netns/web")),
        ("tap:///tap0?pid=42", TapEndpoint("tap0", "/proc/42/ns/net")),
    ],
)
def test_a_url_names_a_device_and_its_namespace(url: str, endpoint: TapEndpoint) -> None:
    spec = parse_listener(f"tap={url}")
    assert spec.endpoint == endpoint
    assert parse_listener(f"tap={spec.endpoint}").endpoint == endpoint


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "a%20b:", "sixteen-letters-"])
def test_what_is_no_name_of_a_device_is_refused(name: str) -> None:
    assert urlsplit(f"tap:///{name}").scheme == "tap"
    with pytest.raises(ValueError, match="expected the name of a network device"):
        parse_listener(f"tap=tap:///{name}")


@pytest.mark.parametrize("query", ["netns=web", "pid=self", "pid=1&netns=/x", "mtu=9000", "netns="])
def test_a_namespace_is_a_path_or_that_of_a_process(query: str) -> None:
    with pytest.raises(ValueError, match="expected netns=/PATH or pid=PID"):
        parse_listener(f"tap=tap:///tap0?{query}")


def test_another_url_is_refused_with_those_there_are() -> None:
    with pytest.raises(ValueError, match="expected tap=tap:///NAME"):
        parse_listener("tap=unix:///run/tap")


# --- devices


@pytest.mark.guest
def test_a_device_is_made_in_the_namespace_and_is_a_vm_at_once(namespace: Namespace) -> None:
    endpoint = TapEndpoint("tap0", path_of(namespace))
    attachment = asyncio.run(attach(endpoint))
    assert (attachment.kind, attachment.framing, attachment.listener) == ("tap", "tap-vnet", str(endpoint))
    shown = link_of(namespace)
    assert f"mtu {MTU}" in shown
    assert "LOWER_UP" in shown
    assert "vnet_hdr on" in shown
    attachment.link.close()
    assert link_of(namespace) == ""


@pytest.mark.guest
def test_the_guest_leaves_its_checksums_to_us(namespace: Namespace) -> None:
    attachment = asyncio.run(attach(TapEndpoint("tap0", path_of(namespace))))
    (fd,) = attachment.link.filenos()
    namespace.ip("address", "add", "10.9.0.1/24", "dev", "tap0")
    namespace.ip("neigh", "add", "10.9.0.2", "lladdr", "5a:94:ef:e4:0c:dd", "dev", "tap0")
    with namespace.entered(), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
        sender.sendto(b"question", ("10.9.0.2", 9))
    frames = iter(lambda: os.read(fd, 65600), b"")
    datagram = next(frame for frame in frames if frame.endswith(b"question"))
    attachment.link.close()
    assert datagram[0] == NEEDS_CSUM
    assert datagram[VNET_HEADER_LEN : VNET_HEADER_LEN + 6] == bytes.fromhex("5a94efe40cdd")


@pytest.mark.guest
def test_a_device_that_exists_is_taken_and_stays(namespace: Namespace) -> None:
    namespace.ip("tuntap", "add", "dev", "tap7", "mode", "tap")
    namespace.ip("link", "set", "tap7", "mtu", "9000")
    attachment = asyncio.run(attach(TapEndpoint("tap7", path_of(namespace))))
    assert f"mtu {MTU}" in link_of(namespace, "tap7")
    attachment.link.close()
    assert "tap7" in link_of(namespace, "tap7")


@pytest.mark.guest
def test_without_offloads_frames_are_plain(namespace: Namespace) -> None:
    with namespace.entered():
        fd, framing = open_device("tap0", offloads=False)
        set_up("tap0", 1400)
    assert framing == "tap"
    shown = link_of(namespace)
    assert "mtu 1400" in shown
    assert "vnet_hdr off" in shown
    os.close(fd)


@pytest.mark.guest
def test_a_rootless_container_is_entered_by_the_user_namespace_it_belongs_to() -> None:
    rootless = ("setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", "unshare", "-Urn", "cat")
    with subprocess.Popen(rootless, stdin=subprocess.PIPE) as container:
        wait_for(lambda: _user_namespace(container.pid) != _user_namespace(os.getpid()), 10, "the container")
        attachment = asyncio.run(attach(TapEndpoint("tap0", f"/proc/{container.pid}/ns/net")))
        shown = subprocess.run(
            ["nsenter", f"--net=/proc/{container.pid}/ns/net", "ip", "link", "show", "tap0"],
            capture_output=True,
            text=True,
            check=False,
        )
        assert "LOWER_UP" in shown.stdout
        attachment.link.close()


def _user_namespace(pid: int) -> str:
    return os.readlink(f"/proc/{pid}/ns/user")


@pytest.mark.guest
def test_a_device_that_is_none_of_ours_is_an_error_that_says_so(namespace: Namespace) -> None:
    with pytest.raises(StartError, match=r"cannot open tap:///lo\?netns=.*: Invalid argument"):
        asyncio.run(attach(TapEndpoint("lo", path_of(namespace))))
    taken = asyncio.run(attach(TapEndpoint("tap0", path_of(namespace))))
    with pytest.raises(StartError, match="busy"):
        asyncio.run(attach(TapEndpoint("tap0", path_of(namespace))))
    taken.link.close()


def test_a_namespace_that_is_not_there_is_an_error_that_says_so() -> None:
    with pytest.raises(StartError, match="there is no /run/netns/nowhere"):
        asyncio.run(attach(TapEndpoint("tap0", "/run/netns/nowhere")))


@pytest.mark.guest
def test_a_namespace_that_is_deleted_ends_the_vm_though_the_device_keeps_it_alive() -> None:
    async def scenario() -> str:
        namespace = Namespace("tap")
        async with listening(TapListener(TapEndpoint("tap0", path_of(namespace)))) as bed:
            attachment = await bed.attachment()
            assert attachment.gone is not None
            assert not attachment.gone.done()
            namespace.close()
            async with asyncio.timeout(10):
                reason = await attachment.gone
            assert not attachment.link.is_closed()
            attachment.link.close()
            return reason

    assert asyncio.run(scenario()) == "its network namespace is gone"


@pytest.mark.guest
def test_a_device_that_is_deleted_is_a_closed_link(namespace: Namespace) -> None:
    attachment = asyncio.run(attach(TapEndpoint("tap0", path_of(namespace))))
    assert not attachment.link.is_closed()
    namespace.ip("link", "delete", "tap0")
    assert attachment.link.is_closed()
    attachment.link.close()
