from supervisor.children import LONGEST_DELAY, QUICK_DEATH, Backoff, status_in_words


def test_the_first_death_costs_no_time_and_quick_ones_more_and_more() -> None:
    backoff = Backoff()
    delays = [backoff.delay(0.1) for _ in range(12)]
    assert delays[:3] == [0.0, 1.0, 2.0]
    assert delays == sorted(delays)
    assert delays[-1] == LONGEST_DELAY


def test_a_long_life_is_forgiving() -> None:
    backoff = Backoff()
    for _ in range(5):
        backoff.delay(0.1)
    assert backoff.delay(QUICK_DEATH) == 0.0
    assert backoff.delay(0.1) == 0.0


def test_statuses_read_as_words() -> None:
    assert status_in_words(-9) == "killed by SIGKILL"
    assert status_in_words(-200) == "killed by signal 200"
    assert status_in_words(70) == "exit status 70"
    assert status_in_words(None) == "ended, how is not known"
