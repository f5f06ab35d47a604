import errno
import os
import resource
from pathlib import Path

import pytest

from supervisor import limits
from supervisor.limits import in_the_way, open_files


def test_a_limit_on_descriptors_is_named_with_what_raises_it() -> None:
    assert (
        in_the_way(errno.EMFILE)
        == f"the service may have {open_files()} open files (systemd: LimitNOFILE=, else ulimit -n)"
    )
    assert "fs.file-max" in in_the_way(errno.ENFILE)


@pytest.mark.parametrize("error", [errno.EAGAIN, errno.ENOMEM, errno.EPERM, None])
def test_there_is_always_something_to_say(error: int | None) -> None:
    assert in_the_way(error)


@pytest.mark.parametrize(("line", "hierarchy"), [("0::/a/b\n", ""), ("8:pids,cpu:/a/b\n7:blkio:/\n", "pids")])
def test_every_control_group_that_bounds_processes_is_named(
    line: str, hierarchy: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "CGROUPS", tmp_path)
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    own, top = tmp_path / "own", tmp_path / hierarchy
    own.write_text(line)
    for group, limit, now in (("a/b", "512", "512"), ("a", "max", "600")):
        (top / group).mkdir(parents=True, exist_ok=True)
        (top / group / "pids.max").write_text(f"{limit}\n")
        (top / group / "pids.current").write_text(f"{now}\n")
    (said,) = limits._on_processes(own)
    assert said == (
        "the control group /a/b may have 512 processes and has 512 (systemd: TasksMax=, container: --pids-limit)"
    )


def test_a_user_with_a_limit_is_told_of_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    monkeypatch.setattr(resource, "getrlimit", lambda _: (100, 100))
    (said,) = limits._on_processes(tmp_path / "none")
    assert said == "this user may have 100 processes (systemd: LimitNPROC=, else ulimit -u)"
