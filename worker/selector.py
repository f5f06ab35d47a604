"""The engine as asyncio's selector: while the loop waits, the engine carries traffic.

`select` enters the engine, which releases the GIL and returns when a registered descriptor is ready, upcalls wait, the
timeout has passed, or its slice of work is over; asyncio copes with a return that reports nothing.
"""

from __future__ import annotations

import selectors
from collections.abc import Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from _typeshed import FileDescriptorLike


class Readiness(Protocol):
    """What a selector needs of `worker.engine.Engine`."""

    def register(self, fd: int, events: int) -> None: ...
    def modify(self, fd: int, events: int) -> None: ...
    def unregister(self, fd: int) -> None: ...
    def run(self, timeout: float) -> list[tuple[int, int]]: ...


class EngineSelector(selectors.BaseSelector):
    """For `asyncio.SelectorEventLoop`, which registers every file object by its descriptor's number."""

    def __init__(self, engine: Readiness) -> None:
        self._engine = engine
        self._keys: dict[FileDescriptorLike, selectors.SelectorKey] = {}

    def register(self, fileobj: FileDescriptorLike, events: int, data: Any = None) -> selectors.SelectorKey:
        fd = _descriptor(fileobj)
        if fd in self._keys:
            raise KeyError(f"{fileobj!r} is registered already")
        self._engine.register(fd, events)
        key = self._keys[fd] = selectors.SelectorKey(fileobj, fd, events, data)
        return key

    def unregister(self, fileobj: FileDescriptorLike) -> selectors.SelectorKey:
        key = self._keys.pop(_descriptor(fileobj))
        self._engine.unregister(key.fd)
        return key

    def modify(self, fileobj: FileDescriptorLike, events: int, data: Any = None) -> selectors.SelectorKey:
        key = self._keys[_descriptor(fileobj)]
        if events != key.events:
            self._engine.modify(key.fd, events)
        key = self._keys[key.fd] = key._replace(events=events, data=data)
        return key

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        wait = -1.0 if timeout is None else max(timeout, 0.0)
        ready = []
        for fd, events in self._engine.run(wait):
            key = self._keys.get(fd)
            if key is not None:
                ready.append((key, events & key.events))
        return ready

    def get_map(self) -> Mapping[FileDescriptorLike, selectors.SelectorKey]:
        return MappingProxyType(self._keys)

    def get_key(self, fileobj: FileDescriptorLike) -> selectors.SelectorKey:
        return self._keys[_descriptor(fileobj)]

    def close(self) -> None:
        self._keys.clear()


def _descriptor(fileobj: FileDescriptorLike) -> int:
    fd = fileobj if isinstance(fileobj, int) else fileobj.fileno()
    if fd < 0:
        raise ValueError(f"{fileobj!r} is closed")
    return fd
