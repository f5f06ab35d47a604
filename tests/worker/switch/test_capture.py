"""Captures show what comes from other VMs as it goes onto the link."""

from __future__ import annotations

import os

import pytest

from tests.guests.pcapng import FROM_GUEST, TO_GUEST
from tests.worker import vnet
from tests.worker.framebed import LINKS
from tests.worker.switch.lan import lan
from tests.worker.switch.test_offloads import MSS, TCP_CHECKSUM, tcp
from tests.worker.test_engine_capture import Capture


@pytest.mark.parametrize("to", LINKS)
@pytest.mark.parametrize("link", ["stream32", "tap-vnet"])
def test_frames_from_vm_to_vm_are_captured_at_both(link: str, to: str) -> None:
    with lan(2, (link, to)) as network:
        one, two = network.ports
        sender, receiver = Capture(one), Capture(two)
        frames = [one.frame(two.mac, os.urandom(size)) for size in (50, 51, 1000, 1500)] * 10
        one.send(*frames)
        network.run_until(lambda: len(two.delivered) == len(frames))
        assert [packet.frame for packet in sender.read() if packet.direction == FROM_GUEST] == frames
        assert [packet.frame for packet in receiver.read() if packet.direction == TO_GUEST] == two.delivered == frames


def test_a_packet_that_is_cut_for_the_link_is_captured_in_pieces() -> None:
    with lan(2, ("tap-vnet", "seqpacket")) as network:
        one, two = network.ports
        capture = Capture(two)
        message = vnet.partial(tcp(one, two, os.urandom(10_000)), TCP_CHECKSUM, MSS)
        one.link.send(message)
        network.run_until(lambda: len(two.delivered) == len(vnet.frames(message)))
        assert [packet.frame for packet in capture.read()] == two.delivered
