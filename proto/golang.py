"""What Go's standard library accepts and says, as gvproxy's clients see it through the API.

Covered: `encoding/json` decoding of one value into a struct (keys in any case, unknown keys and trailing text ignored)
and its errors, `encoding/json` encoding, `net.SplitHostPort`, `strconv.ParseUint`. Error texts are Go's wherever a
client can tell them apart; two kinds of broken JSON that Go words differently may read the same here.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

_CONTEXT = {
    "Expecting value": "looking for beginning of value",
    "Expecting property name enclosed in double quotes": "looking for beginning of object key string",
    "Expecting ':' delimiter": "after object key",
    "Expecting ',' delimiter": "after object key:value pair",
    "Illegal trailing comma before end of object": "looking for beginning of object key string",
    "Invalid control character at": "in string literal",
    "Invalid \\escape": "in string escape code",
}
_KINDS: dict[type, str] = {dict: "object", list: "array", str: "string", bool: "bool", int: "number", float: "number"}
_GO_TYPES: dict[type, str] = {str: "string", list: "[]types.Record", bool: "bool"}


class GoError(ValueError):
    """An error whose text is what Go would have said."""


def decode_value(body: bytes) -> Any:
    """The first JSON value of `body`, whatever follows it. Raises GoError."""
    text = body.decode("utf-8", "replace")
    start = len(text) - len(text.lstrip(" \t\r\n"))
    if start == len(text):
        raise GoError("EOF")
    try:
        value, _ = json.JSONDecoder(parse_constant=_refuse_constant).raw_decode(text, start)
    except json.JSONDecodeError as error:
        if error.pos >= len(text) or error.msg.startswith("Unterminated string"):
            raise GoError("unexpected EOF") from error
        reason = next((ours for theirs, ours in _CONTEXT.items() if error.msg.startswith(theirs)), error.msg)
        raise GoError(f"invalid character {_quoted(text[error.pos])} {reason}") from error
    except RecursionError as error:
        raise GoError("exceeded max depth") from error
    except ValueError as error:  # a number of thousands of digits
        raise GoError(f"json: {error}") from error
    return value


def read_struct(value: Any, struct: str, fields: Mapping[str, type]) -> dict[str, Any]:
    """The fields of `value` that `struct` has, under their Go names; absent and null ones are left out."""
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise GoError(f"json: cannot unmarshal {_KINDS[type(value)]} into Go value of type types.{struct}")
    names = {name.lower(): name for name in fields}
    found: dict[str, Any] = {}
    for key, item in value.items():
        name = names.get(key.lower())
        if name is None or item is None:
            continue
        kind = fields[name]
        if type(item) is not kind:
            raise GoError(
                f"json: cannot unmarshal {_KINDS[type(item)]} into Go struct field {struct}.{name}"
                f" of type {_GO_TYPES[kind]}"
            )
        # Go has no lone surrogates either: it replaces them, and they could not be sent on as UTF-8.
        found[name] = item.encode("utf-8", "replace").decode() if isinstance(item, str) else item
    return found


def encode_value(value: Any) -> str:
    """`value` as `json.NewEncoder(w).Encode` writes it: no spaces, HTML-safe, one newline at the end."""
    text = json.dumps(value, separators=(",", ":"), ensure_ascii=False)
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return text + "\n"


def split_host_port(address: str) -> tuple[str, str]:
    """Host and port of ``host:port`` or ``[v6]:port``. Raises GoError."""
    host, colon, port = address.rpartition(":")
    if not colon or address.endswith("]"):
        raise _address_error(address, "missing port in address")
    if address.startswith("["):
        end = address.find("]")
        if end < 0:
            raise _address_error(address, "missing ']' in address")
        if end + 1 != len(host):
            problem = "too many colons in address" if address[end + 1] == ":" else "missing port in address"
            raise _address_error(address, problem)
        host = host[1:end]
    elif ":" in host:
        raise _address_error(address, "too many colons in address")
    for bracket in "[]":
        if bracket in host or bracket in port:
            raise _address_error(address, f"unexpected '{bracket}' in address")
    return host, port


def parse_uint16(text: str) -> int:
    """What Go's `strconv.ParseUint(text, 10, 16)` makes of a text. Raises GoError."""
    if not (text.isascii() and text.isdecimal()):
        raise GoError(f'strconv.ParseUint: parsing "{text}": invalid syntax')
    if len(text.lstrip("0")) > 5 or int(text) > 0xFFFF:
        raise GoError(f'strconv.ParseUint: parsing "{text}": value out of range')
    return int(text)


def _address_error(address: str, problem: str) -> GoError:
    return GoError(f"address {address}: {problem}" if address else problem)


def _quoted(character: str) -> str:
    return {"'": r"'\''", '"': "'\"'"}.get(character, f"'{character}'")


def _refuse_constant(name: str) -> None:
    raise GoError(f"invalid character '{name[0]}' looking for beginning of value")
