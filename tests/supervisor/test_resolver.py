from pathlib import Path

from supervisor.resolver import MAX_NAMESERVERS, HostResolver, ResolverWatch, parse


def test_name_servers_and_the_last_search_line_count() -> None:
    text = """
# nameserver 9.9.9.9
nameserver 1.1.1.1 # first
nameserver 2001:db8::1
nameserver fe80::1%eth0
nameserver 1.1.1.1
nameserver nonsense
nameserver
options edns0
domain old.example
search a.example b.example ; last
"""
    assert parse(text) == HostResolver(("1.1.1.1", "2001:db8::1", "fe80::1%eth0"), ("a.example", "b.example"))


def test_there_is_a_bound_on_name_servers() -> None:
    many = "".join(f"nameserver 10.0.0.{number}\n" for number in range(1, 100))
    assert len(parse(many).nameservers) == MAX_NAMESERVERS


def test_a_missing_file_is_no_failure_and_a_change_is_seen(tmp_path: Path) -> None:
    file = tmp_path / "resolv.conf"
    watch = ResolverWatch(file)
    assert watch.current == HostResolver()
    assert not watch.check()
    file.write_text("nameserver 1.1.1.1\n")
    assert watch.check()
    assert watch.current.nameservers == ("1.1.1.1",)
    assert not watch.check()
    file.write_text("nameserver 1.1.1.1\n# only a comment changed\n")
    assert not watch.check()
    file.unlink()
    assert watch.check()
    assert watch.current == HostResolver()


def test_bytes_that_are_no_text_are_survived(tmp_path: Path) -> None:
    file = tmp_path / "resolv.conf"
    file.write_bytes(b"\xff\xfe\nnameserver 1.1.1.1\n\x00search \xff\n")
    assert ResolverWatch(file).current.nameservers == ("1.1.1.1",)
