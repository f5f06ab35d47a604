"""Programs that say when they begin and what they found, or what went wrong."""

from __future__ import annotations

import pytest

from bench.client import Client, Unmeasurable


def shell(script: str) -> Client:
    return Client(["sh", "-c", script])


def test_a_report_follows_the_beginning() -> None:
    with shell("echo begin; echo '{\"count\": 3}'; exec sleep 60") as client:
        client.expect_begin(5)
        assert client.report(5) == {"count": 3}


def test_what_a_program_says_instead_is_the_reason() -> None:
    with (
        shell("echo 'connect: Connection refused' >&2; exit 1") as client,
        pytest.raises(Unmeasurable, match="refused"),
    ):
        client.expect_begin(5)


def test_a_program_that_just_ends_is_a_reason_too() -> None:
    with shell("echo begin; exit 3") as client:
        client.expect_begin(5)
        with pytest.raises(Unmeasurable, match="status 3"):
            client.report(5)


def test_a_program_that_says_nothing_is_not_waited_for() -> None:
    with shell("exec sleep 60") as client, pytest.raises(Unmeasurable, match="nothing said"):
        client.expect_begin(0.1)
