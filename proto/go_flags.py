"""Command lines as Go's package `flag` reads them, which `argparse` and click cannot.

``-x v``, ``-x=v``, and two dashes for one; a bool alone or as ``-x=BOOL``; numbers with Go's prefixes; a flag given
twice counts the last time, or each time where it is a list. The first word that is no flag, or ``--``, ends the flags.
The errors are Go's sentences.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

INT_MAX = (1 << 63) - 1
TRUE = frozenset(("1", "t", "T", "true", "TRUE", "True"))
FALSE = frozenset(("0", "f", "F", "false", "FALSE", "False"))


class FlagError(ValueError):
    """A command line that Go would not take; Go prints this, then the usage, and ends with status 2."""


class HelpAsked(Exception):
    """``-h``: Go prints the usage and ends with status 0."""


@dataclass(frozen=True)
class Flag:
    """One flag of a command."""

    kind: type[str] | type[int] | type[bool] | type[list[str]]
    usage: str
    default: Any = None
    """`None`: the kind's empty value."""

    @property
    def initial(self) -> Any:
        """What it is when it is not given."""
        return self.kind() if self.default is None else self.default


def parse(flags: Mapping[str, Flag], arguments: Sequence[str]) -> dict[str, Any]:
    """The value of every flag. Raises FlagError and HelpAsked."""
    values = {name: flag.initial for name, flag in flags.items()}
    waiting = list(reversed(arguments))
    while waiting and len(waiting[-1]) > 1 and waiting[-1].startswith("-"):
        word = waiting.pop()
        if word == "--":
            break
        name, given, text = word.removeprefix("-").removeprefix("-").partition("=")
        if not name or name.startswith("-"):
            raise FlagError(f"bad flag syntax: {word}")
        flag = flags.get(name)
        if flag is None:
            if name in ("h", "help"):
                raise HelpAsked
            raise FlagError(f"flag provided but not defined: -{name}")
        if not given and flag.kind is not bool:
            if not waiting:
                raise FlagError(f"flag needs an argument: -{name}")
            text = waiting.pop()
        values[name] = _set(name, flag, values[name], text if given or flag.kind is not bool else "true")
    return values


def usage(command: str, flags: Mapping[str, Flag]) -> str:
    """What Go prints of a command's flags."""
    lines = [f"Usage of {command}:"]
    for name, flag in sorted(flags.items()):
        kind = {str: " string", int: " int", bool: ""}.get(flag.kind, " value")
        default = f" (default {_quoted(flag.default)})" if flag.default is not None else ""
        lines += [f"  -{name}{kind}", f"    \t{flag.usage}{default}"]
    return "\n".join(lines)


def _set(name: str, flag: Flag, old: Any, text: str) -> Any:
    if flag.kind is str:
        return text
    if flag.kind is bool or flag.kind is int:
        parse_value: Callable[[str], bool | int] = _parse_bool if flag.kind is bool else _parse_int
        try:
            return parse_value(text)
        except ValueError as error:
            what = "boolean value" if flag.kind is bool else "value"
            which = f"-{name}" if flag.kind is bool else f"flag -{name}"
            raise FlagError(f"invalid {what} {_quoted(text)} for {which}: {error}") from error
    return [*old, text]


def _parse_bool(text: str) -> bool:
    if text not in TRUE | FALSE:
        raise ValueError("parse error")
    return text in TRUE


def _parse_int(text: str) -> int:
    """What `strconv.ParseInt(text, 0, 64)` takes: Python's literals, and octal numbers behind a plain 0."""
    sign, digits = (text[0], text[1:]) if text[:1] in ("+", "-") else ("", text)
    if len(digits) > 1 and digits[0] == "0" and digits[1] in "01234567_":
        digits = f"0o{digits[1:]}"
    try:
        number = int(f"{sign}{digits}", 0) if digits.isascii() and digits[:1].isdigit() else None
    except ValueError:
        number = None
    if number is None or digits != digits.strip():
        raise ValueError("parse error")
    if not -INT_MAX - 1 <= number <= INT_MAX:
        raise ValueError("value out of range")
    return number


def _quoted(value: object) -> str:
    return json.dumps(value, ensure_ascii=False)
