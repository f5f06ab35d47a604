"""Messages as bytes: msgpack, versioned, size-capped, validated field by field on receipt.

One message is a msgpack array of five::

    [ version, type name, request id, is reply, {field: value, ...} ]
       int      str        int >= 0    bool

Request id 0 is a message nobody answers. A nested message class is a map, a tuple is an array. Fields left out take
their defaults; a field too many, a value of another type, an unknown type name or another version are refused with
`CodecError`: the two ends of a channel are the same release, so a mismatch is a fault, not an older peer.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import msgpack
from pydantic import TypeAdapter
from pydantic_core import SchemaValidator, ValidationError

from proto import captures, events, guest_requests, messages, ssh, switch
from proto.errors import CodecError

VERSION = 1
MAX_MESSAGE_SIZE = 1 << 20
"""Bytes; the largest real message is `Vms`, some hundred bytes a VM."""
MAX_REQUEST_ID = (1 << 63) - 1

Message = Any
"""An instance of any class of `proto.messages`, `proto.events`, `proto.switch`, `proto.captures`, `proto.ssh` and
`proto.guest_requests`."""

_STRICTER: dict[str, dict[str, Any]] = {
    "int": {"strict": True},
    "str": {"strict": True},
    "bytes": {"strict": True},
    "bool": {"strict": True},
    "float": {"strict": True},
    "dataclass-args": {"extra_behavior": "forbid"},
}


def _strict(schema: Any) -> Any:
    """A pydantic core schema whose leaves do not convert.

    Pydantic's own strict mode would also refuse a map where a nested dataclass belongs, and that is what msgpack gives.
    """
    if isinstance(schema, dict):
        walked = {key: _strict(value) for key, value in schema.items()}
        kind = schema.get("type")
        return walked | _STRICTER.get(kind, {}) if isinstance(kind, str) else walked
    return [_strict(item) for item in schema] if isinstance(schema, list) else schema


_VALIDATORS = {
    name: SchemaValidator(_strict(TypeAdapter(kind).core_schema))
    for module in (messages, events, switch, captures, guest_requests, ssh)
    for name, kind in vars(module).items()
    if isinstance(kind, type) and dataclasses.is_dataclass(kind)
}


@dataclasses.dataclass(frozen=True, slots=True)
class Envelope:
    """A received message and how it is to be answered."""

    request_id: int
    """0: not to be answered."""
    reply: bool
    """It is the answer to the request of that id."""
    message: Message


def encode(message: Message, request_id: int = 0, reply: bool = False) -> bytes:
    """The message as bytes. Raises CodecError when it is larger than `MAX_MESSAGE_SIZE`, or a text is no UTF-8."""
    assert type(message).__name__ in _VALIDATORS, message
    envelope = [VERSION, type(message).__name__, request_id, reply, _fields(message)]
    try:
        data: bytes = msgpack.packb(envelope, default=_fields)
    except UnicodeEncodeError as error:
        raise CodecError(f"{type(message).__name__}: a text is no UTF-8: {error}") from error
    if len(data) > MAX_MESSAGE_SIZE:
        raise CodecError(f"{type(message).__name__} of {len(data)} bytes is over the limit of {MAX_MESSAGE_SIZE}")
    return data


def decode(data: bytes | memoryview) -> Envelope:
    """The message in `data`. Raises CodecError on anything but exactly one valid message."""
    if len(data) > MAX_MESSAGE_SIZE:
        raise CodecError(f"message of {len(data)} bytes is over the limit of {MAX_MESSAGE_SIZE}")
    try:
        parts = msgpack.unpackb(data, use_list=False)
    # msgpack raises subclasses of ValueError for broken input and deep nesting, plain ones for trailing bytes,
    # and TypeError for keys that cannot be hashed.
    except (ValueError, TypeError, RecursionError, msgpack.UnpackException) as error:
        raise CodecError(f"not msgpack: {error}") from error
    if not isinstance(parts, tuple) or len(parts) != 5:
        raise CodecError("not an array of five")
    version, name, request_id, reply, fields = parts
    if type(version) is not int or version != VERSION:
        raise CodecError(f"version {version!r:.40} is not {VERSION}")
    if type(request_id) is not int or not 0 <= request_id <= MAX_REQUEST_ID or type(reply) is not bool:
        raise CodecError("bad request id or reply mark")
    validator = _VALIDATORS.get(name) if isinstance(name, str) else None
    if validator is None:
        raise CodecError(f"unknown message type {name!r:.60}", request_id)
    try:
        return Envelope(request_id, reply, validator.validate_python(fields))
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(str(step) for step in first["loc"])
        raise CodecError(f"{name}: {where}: {first['msg']}"[:300], request_id) from error


def _fields(message: Message) -> dict[str, Any]:
    if not dataclasses.is_dataclass(message) or isinstance(message, type):
        raise TypeError(f"{type(message).__name__} cannot travel in a message")
    return {field.name: getattr(message, field.name) for field in dataclasses.fields(message)}
