"""QEMU's stream links."""

from __future__ import annotations

from typing import ClassVar

from proto.messages import Framing
from supervisor.attach.listener import StreamListener
from supervisor.endpoints import TCP, UNIX, TcpEndpoint, UnixEndpoint


class QemuListener(StreamListener):
    """QEMU's ``-netdev stream`` and ``-netdev socket``: 4-byte big-endian lengths."""

    kind = "qemu"
    title = "QEMU"
    forms = (UNIX, TCP)
    framing: ClassVar[Framing] = "stream32"

    def attach_hint(self) -> str:
        if isinstance(self.endpoint, UnixEndpoint):
            address = f"addr.type=unix,addr.path={self.endpoint.path}"
        else:
            assert isinstance(self.endpoint, TcpEndpoint)
            address = f"addr.type=inet,addr.host={self.endpoint.host},addr.port={self.endpoint.port}"
        return f"-netdev stream,id=net0,server=off,{address} -device virtio-net-pci,netdev=net0,mac=5a:94:ef:e4:0c:ee"
