"""The kinds of VM that can attach, and ``KIND=URL[,option=value...]``, which names one and where it listens."""

from __future__ import annotations

from dataclasses import dataclass

from supervisor.attach.bess import BessListener
from supervisor.attach.hyperkit import HyperkitListener
from supervisor.attach.listener import Listener
from supervisor.attach.options import NO_OPTIONS, Options, parse_options
from supervisor.attach.qemu import QemuListener
from supervisor.attach.qemu_dgram import QemuDatagramListener
from supervisor.attach.stdio import StdioListener
from supervisor.attach.tap import TapListener
from supervisor.attach.vfkit import VfkitListener
from supervisor.attach.vsock import VsockListener
from supervisor.endpoints import Endpoint, parse_endpoint

MAX_MTU = 65535
MAX_SHORT_MTU = 65535 - 14
"""Where the frame's length, with its Ethernet header, has two bytes; and of a tap device."""
KINDS: dict[str, type[Listener]] = {
    kind.kind: kind
    for kind in (
        QemuListener,
        BessListener,
        HyperkitListener,
        VsockListener,
        StdioListener,
        TapListener,
        VfkitListener,
        QemuDatagramListener,
    )
}


@dataclass(frozen=True, slots=True)
class ListenerSpec:
    """One ``--listen``: which kind of VM attaches where, and who may."""

    kind: str
    endpoint: Endpoint
    options: Options = NO_OPTIONS

    @property
    def max_mtu(self) -> int:
        """The longest packets that the kind's framing carries."""
        return MAX_SHORT_MTU if KINDS[self.kind].framing in ("stream16", "tap-vnet") else MAX_MTU

    def open(self) -> Listener:
        """Bind it. Raises StartError."""
        return KINDS[self.kind](self.endpoint, self.options)


def parse_listener(text: str) -> ListenerSpec:
    """The listener that an operator asks for. Raises ValueError that says what was expected."""
    name, given, rest = text.partition("=")
    kind = KINDS.get(name)
    if not given or kind is None:
        raise ValueError(f"expected KIND=URL with KIND one of {', '.join(sorted(KINDS))}; got {text!r}")
    url, *options = rest.split(",")
    spec = ListenerSpec(name, parse_endpoint(url, kind.forms, f"{name}="), parse_options(options))
    if spec.options.allow_uid and not kind.knows_uids(spec.endpoint):
        raise ValueError(f"expected no allow-uid behind {spec.endpoint}: the users of such a socket are not known")
    return spec
