"""QEMU's stream links."""

from __future__ import annotations

from proto.messages import Framing
from supervisor.attach.listener import Listener
from supervisor.endpoints import UnixEndpoint


class QemuListener(Listener):
    """QEMU's ``-netdev stream`` and ``-netdev socket``: 4-byte big-endian lengths."""

    kind = "qemu"
    title = "QEMU"
    framing: Framing = "stream32"

    def attach_hint(self) -> str:
        if isinstance(self.endpoint, UnixEndpoint):
            address = f"addr.type=unix,addr.path={self.endpoint.path}"
        else:
            address = f"addr.type=inet,addr.host={self.endpoint.host},addr.port={self.endpoint.port}"
        return f"-netdev stream,id=net0,server=off,{address} -device virtio-net-pci,netdev=net0,mac=5a:94:ef:e4:0c:ee"
