"""The options behind a listener's URL: ``qemu=unix:///run/vm/qemu.sock,allow-uid=1000+0``."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

MAX_UID = (1 << 32) - 2
"""uid_t's last value is -1, which is nobody: setreuid(2)."""
DEFAULT_NETWORK = "default"


@dataclass(frozen=True, slots=True)
class Options:
    """What an operator asks of one listener beyond where it is."""

    allow_uid: frozenset[int] = frozenset()
    """Whose processes may attach; empty: whoever reaches the socket."""
    network: str = DEFAULT_NETWORK
    """That VMs which attach here are on."""
    end_with_vm: bool = False
    """The service ends when a VM that attached here is gone."""


NO_OPTIONS = Options()


def _uids(text: str) -> frozenset[int]:
    uids = text.split("+")
    if not all(uid.isascii() and uid.isdigit() and int(uid) <= MAX_UID for uid in uids):
        raise ValueError(f"expected allow-uid=UID or allow-uid=UID+UID with numbers, got {text!r}")
    return frozenset(map(int, uids))


def _yes_or_no(text: str) -> bool:
    if text not in ("yes", "no"):
        raise ValueError(f"expected yes or no, got {text!r}")
    return text == "yes"


PARSERS: dict[str, tuple[str, Callable[[str], Any]]] = {
    "allow-uid": ("allow_uid", _uids),
    "network": ("network", str),
    "end-with-vm": ("end_with_vm", _yes_or_no),
}
"""By the name an operator writes: the field, and what reads its value."""


def parse_options(texts: Sequence[str]) -> Options:
    """Options as ``name=value``, each at most once. Raises ValueError that says what was expected."""
    values: dict[str, Any] = {}
    for text in texts:
        name, given, value = text.partition("=")
        if not given or name not in PARSERS:
            expected = " or ".join(f"{known}=..." for known in PARSERS)
            raise ValueError(f"expected {expected} behind the URL's comma, got {text!r}")
        field, parse = PARSERS[name]
        if field in values:
            raise ValueError(f"expected {name} once, got it twice")
        values[field] = parse(value)
    return Options(**values)
