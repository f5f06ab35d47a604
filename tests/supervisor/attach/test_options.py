import pytest

from supervisor.attach.options import MAX_UID, Options, parse_options


def test_no_options_allow_everybody() -> None:
    assert parse_options([]) == Options()
    assert not Options().allow_uid


def test_users_are_added_up() -> None:
    assert parse_options(["allow-uid=1000+0"]).allow_uid == {0, 1000}
    assert parse_options([f"allow-uid={MAX_UID}"]).allow_uid == {MAX_UID}


def test_vms_are_on_the_default_network_unless_it_says_otherwise() -> None:
    assert Options().network == "default"
    assert parse_options(["network=lab", "allow-uid=0"]) == Options(frozenset({0}), "lab")


def test_the_service_ends_with_a_vm_where_it_says_so() -> None:
    assert not parse_options([]).end_with_vm
    assert not parse_options(["end-with-vm=no"]).end_with_vm
    assert parse_options(["end-with-vm=yes"]).end_with_vm


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("", "expected allow-uid=.* behind the URL's comma, got ''"),
        ("allow-uid", "expected allow-uid=.* got 'allow-uid'"),
        ("colour=red", "expected allow-uid=.* got 'colour=red'"),
        ("allow-uid=", "expected allow-uid=UID or .* got ''"),
        ("allow-uid=root", "got 'root'"),
        ("allow-uid=1+", r"got '1\+'"),
        ("allow-uid=-1", "got '-1'"),
        ("allow-uid=4294967295", "got '4294967295'"),
    ],
)
def test_a_wrong_option_is_refused_with_what_was_expected(text: str, error: str) -> None:
    with pytest.raises(ValueError, match=error):
        parse_options([text])


def test_an_option_given_twice_is_refused() -> None:
    with pytest.raises(ValueError, match="expected allow-uid once"):
        parse_options(["allow-uid=1", "allow-uid=2"])
