"""The kinds of VM that can attach, by the names that ``--listen KIND=URL`` takes."""

from __future__ import annotations

from supervisor.attach.listener import Listener
from supervisor.attach.qemu import QemuListener

KINDS: dict[str, type[Listener]] = {QemuListener.kind: QemuListener}
