import time

import pytest

from proto.patterns import compile_pattern


def test_names_have_no_case() -> None:
    assert compile_pattern("^Web-[0-9]+$").search("wEB-12")
    assert not compile_pattern("^Web-[0-9]+$").search("web-x")


def test_what_is_wrong_is_said() -> None:
    with pytest.raises(ValueError, match=r"^missing \): \(a$"):
        compile_pattern("(a")


@pytest.mark.parametrize("regexp", ["^(a+)+$", "^(a|aa)*b$", "^(((a?){30}){30})b$"])
def test_no_expression_takes_more_than_linear_time(regexp: str) -> None:
    pattern = compile_pattern(regexp)
    began = time.perf_counter()
    for _ in range(10):
        pattern.search("a" * 250 + "!")
    assert time.perf_counter() - began < 1.0
