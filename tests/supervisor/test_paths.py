import os
import stat
from pathlib import Path

import pytest

from supervisor.errors import ConfigError, StartError
from supervisor.paths import check_socket_paths, lock_dir, prepare_private_dir, runtime_dir, state_dir


def test_the_option_goes_before_systemd_before_the_usual_place() -> None:
    env = {"RUNTIME_DIRECTORY": "/run/a:/run/b", "XDG_RUNTIME_DIR": "/run/user/7"}
    assert runtime_dir(Path("/x"), env, True) == Path("/x")
    assert runtime_dir(None, env, False) == Path("/run/a")
    assert runtime_dir(None, {}, True) == Path("/run/moorage")
    assert runtime_dir(None, {"XDG_RUNTIME_DIR": "/run/user/7"}, False) == Path("/run/user/7/moorage")


def test_the_state_directory_likewise() -> None:
    assert state_dir(Path("/x"), {"STATE_DIRECTORY": "/a"}, True) == Path("/x")
    assert state_dir(None, {"STATE_DIRECTORY": "/a"}, False) == Path("/a")
    assert state_dir(None, {}, True) == Path("/var/lib/moorage")
    assert state_dir(None, {"XDG_STATE_HOME": "/s", "HOME": "/h"}, False) == Path("/s/moorage")
    assert state_dir(None, {"HOME": "/h"}, False) == Path("/h/.local/state/moorage")


def test_no_place_at_all_names_the_flag() -> None:
    with pytest.raises(ConfigError, match="--runtime-dir"):
        runtime_dir(None, {}, False)
    with pytest.raises(ConfigError, match="--state-dir"):
        state_dir(None, {}, False)


def test_a_directory_too_long_for_its_sockets_is_refused() -> None:
    check_socket_paths(Path("/" + "x" * 92))
    with pytest.raises(ConfigError, match="at most 93 bytes"):
        check_socket_paths(Path("/" + "x" * 93))


def test_a_directory_is_made_private(tmp_path: Path) -> None:
    made = tmp_path / "a" / "b"
    prepare_private_dir(made)
    made.chmod(0o755)
    prepare_private_dir(made)
    assert stat.S_IMODE(made.stat().st_mode) == 0o700


def test_a_shared_directory_and_a_file_are_refused(tmp_path: Path) -> None:
    shared = tmp_path / "shared"
    shared.mkdir()
    shared.chmod(0o1777)
    with pytest.raises(StartError, match="shared with other users"):
        prepare_private_dir(shared)
    (tmp_path / "file").touch()
    with pytest.raises(StartError, match="file"):
        prepare_private_dir(tmp_path / "file")


def test_one_service_at_a_time_has_a_directory(tmp_path: Path) -> None:
    held = lock_dir(tmp_path)
    with pytest.raises(StartError, match=f"{tmp_path} is in use by another moorage"):
        lock_dir(tmp_path)
    os.close(held)
    os.close(lock_dir(tmp_path))
