"""Command lines as Go's package `flag` reads them."""

from __future__ import annotations

from typing import Any

import pytest

from proto.go_flags import Flag, FlagError, HelpAsked, parse, usage

FLAGS = {
    "name": Flag(str, "a name"),
    "port": Flag(int, "a port", 2222),
    "debug": Flag(bool, "say more"),
    "listen": Flag(list, "an address"),
}


def given(*arguments: str) -> dict[str, Any]:
    """What differs from the defaults."""
    initial = {name: flag.initial for name, flag in FLAGS.items()}
    return {name: value for name, value in parse(FLAGS, arguments).items() if value != initial[name]}


def test_flags_that_are_not_given_have_their_defaults() -> None:
    assert parse(FLAGS, []) == {"name": "", "port": 2222, "debug": False, "listen": []}


@pytest.mark.parametrize("arguments", [("-name", "v"), ("--name", "v"), ("-name=v",), ("--name=v",)])
def test_one_dash_or_two_and_a_value_in_the_same_word_or_the_next(arguments: tuple[str, ...]) -> None:
    assert given(*arguments) == {"name": "v"}


def test_a_value_may_begin_with_a_dash_or_hold_an_equals_sign_or_be_empty() -> None:
    assert given("-name", "-debug") == {"name": "-debug"}
    assert given("-name=a=b") == {"name": "a=b"}
    assert given("-name", "x", "-name=") == {}


@pytest.mark.parametrize("text", ["1", "t", "T", "true", "TRUE", "True"])
def test_a_bool_is_true_alone_and_in_gos_words(text: str) -> None:
    assert given("-debug") == given(f"-debug={text}") == {"debug": True}


@pytest.mark.parametrize("text", ["0", "f", "F", "false", "FALSE", "False"])
def test_a_bool_is_false_in_gos_words(text: str) -> None:
    assert given("-debug", f"-debug={text}") == {}


def test_a_bool_does_not_take_the_next_word_which_then_ends_the_flags() -> None:
    assert given("-debug", "false", "-name", "v") == {"debug": True}


@pytest.mark.parametrize("end", ["word", "-", "--", ""])
def test_the_first_word_that_is_no_flag_silently_ends_parsing(end: str) -> None:
    assert given("-port", "1", end, "-name", "v") == {"port": 1}


def test_a_flag_given_twice_counts_the_last_time_and_a_list_each_time() -> None:
    assert given("-port", "1", "-port", "2", "-listen", "a", "-listen=b") == {"port": 2, "listen": ["a", "b"]}


@pytest.mark.parametrize(
    ("text", "number"), [("-1", -1), ("+5", 5), ("0x1F", 31), ("010", 8), ("0b11", 3), ("0o17", 15), ("1_000", 1000)]
)
def test_numbers_have_gos_prefixes(text: str, number: int) -> None:
    assert given("-port", text) == {"port": number}


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (("-nope",), "flag provided but not defined: -nope"),
        (("--nope=1",), "flag provided but not defined: -nope"),
        (("-name",), "flag needs an argument: -name"),
        (("---name",), "bad flag syntax: ---name"),
        (("-=1",), "bad flag syntax: -=1"),
        (("-debug=yes",), 'invalid boolean value "yes" for -debug: parse error'),
        (("-port", "x"), 'invalid value "x" for flag -port: parse error'),
        (("-port", " 1"), 'invalid value " 1" for flag -port: parse error'),
        (("-port", "08"), 'invalid value "08" for flag -port: parse error'),
        (("-port", "9223372036854775808"), 'invalid value "9223372036854775808" for flag -port: value out of range'),
    ],
)
def test_what_go_does_not_take_is_said_in_gos_words(arguments: tuple[str, ...], text: str) -> None:
    with pytest.raises(FlagError) as refused:
        parse(FLAGS, arguments)
    assert str(refused.value) == text


@pytest.mark.parametrize("flag", ["-h", "--help", "-help"])
def test_help_is_no_error(flag: str) -> None:
    with pytest.raises(HelpAsked):
        parse(FLAGS, [flag])


def test_usage_lists_every_flag_in_order() -> None:
    assert usage("cmd", FLAGS).splitlines() == [
        "Usage of cmd:",
        *("  -debug", "    \tsay more"),
        *("  -listen value", "    \tan address"),
        *("  -name string", "    \ta name"),
        *("  -port int", "    \ta port (default 2222)"),
    ]
