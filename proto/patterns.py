"""The regular expressions of zone records: RE2's syntax, which is Go's, matched in time linear in the name.

A guest chooses the name that an operator's expression is tried on, so Python's `re`, which may take exponential time,
would let a guest stall its gateway. Names have no case (RFC 4343), and so expressions have none either.
"""

from __future__ import annotations

from typing import Protocol

import re2

MAX_MEMORY = 1 << 20
"""Bytes of one compiled expression and its automaton's cache."""


class Pattern(Protocol):
    """A compiled expression."""

    def search(self, text: str) -> object: ...


def compile_pattern(regexp: str) -> Pattern:
    """Raises ValueError, with RE2's words and the part that is wrong: ``missing ): (``."""
    options = re2.Options()
    options.case_sensitive = False
    options.log_errors = False
    options.max_mem = MAX_MEMORY
    try:
        pattern: Pattern = re2.compile(regexp, options)
    except re2.error as error:
        words = error.args[0]
        raise ValueError(words.decode("utf-8", "replace") if isinstance(words, bytes) else words) from error
    return pattern
