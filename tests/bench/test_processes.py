"""What processes cost, asked of processes we know."""

from __future__ import annotations

import os
import subprocess
import time

from bench.processes import alive, cpu_seconds, idle_seconds, pss, thread_seconds, tree


def test_a_tree_is_a_process_and_its_descendants() -> None:
    with subprocess.Popen(["sh", "-c", "sleep 60 & echo $!; wait"], stdout=subprocess.PIPE, text=True) as shell:
        assert shell.stdout is not None
        child = int(shell.stdout.readline())
        try:
            assert set(tree(shell.pid)) == {shell.pid, child}
            assert shell.pid in tree(os.getpid())
        finally:
            os.kill(child, 9)


def test_cpu_time_grows_with_work() -> None:
    before = cpu_seconds([os.getpid()])
    end = time.process_time() + 0.1
    while time.process_time() < end:
        pass
    assert 0.05 < cpu_seconds([os.getpid()]) - before < 5


def test_each_thread_has_a_time_of_its_own_and_together_they_are_the_process() -> None:
    found = thread_seconds(os.getpid())
    assert str(os.getpid()) in found
    assert abs(sum(found.values()) - cpu_seconds([os.getpid()])) < 1
    with subprocess.Popen(["true"]) as gone:
        pass
    assert thread_seconds(gone.pid) == {}


def test_what_is_idle_only_grows() -> None:
    before = idle_seconds()
    assert 0 < before <= idle_seconds()


def test_memory_is_that_of_a_living_process_only() -> None:
    assert pss(os.getpid()) > 1_000_000
    with subprocess.Popen(["true"]) as gone:
        pass
    assert pss(gone.pid) == 0
    assert cpu_seconds([gone.pid]) == 0


def test_a_process_that_ended_is_not_alive_whether_it_was_waited_for_or_not() -> None:
    assert alive(os.getpid())
    with subprocess.Popen(["true"]) as ended:
        os.waitid(os.P_PID, ended.pid, os.WEXITED | os.WNOWAIT)
        assert not alive(ended.pid)
    assert not alive(ended.pid)
