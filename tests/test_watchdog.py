"""A step that takes too long is told with the stacks of all threads; a process that is gone is named."""

import re
import threading
import time

import pytest

from magvid import watchdog
from magvid.watchdog import Peers, Watchdog


@pytest.fixture
def fast(monkeypatch):
    """Two seconds are long."""
    for name, value in dict(LEAST=1.5, BEAT=0.2, SILENT=1.5, STUCK=4.0).items():
        monkeypatch.setattr(watchdog, name, value)


def stand_still(seconds):
    time.sleep(seconds)


def test_a_long_step_is_told_once_with_all_stacks(tmp_path, fast):
    said = []
    with Watchdog(tmp_path, said.append) as dog:
        for step in (1, 2, 3):
            dog.beat(step)
        with dog.paused():
            dog.beat(3)  # as a step that is read before its save
            time.sleep(2.5)
        assert not said
        with pytest.raises(ValueError), dog.paused():
            raise ValueError  # it watches again
        threading.Thread(target=stand_still, args=(4.5,), daemon=True).start()
        time.sleep(4.5)
        assert len(said) == 1 and said[0].startswith("step 4 takes more than 10 times as long as usual")
        dog.beat(4)
    stacks = (tmp_path / "stacks-0.txt").read_text()
    assert "after step 3" in stacks and "stand_still" in stacks and "test_a_long_step_is_told" in stacks


class Client:
    """jax's coordination service."""

    def __init__(self):
        self.kept = {}

    def key_value_set(self, key, value, allow_overwrite):
        self.kept[key] = value

    def key_value_dir_get(self, prefix):
        return [(k, v) for k, v in self.kept.items() if k.startswith(prefix)]


def test_a_process_that_is_gone_or_behind_is_named(fast):
    client = Client()
    ours, theirs = Peers(client, 0, 3), [Peers(client, i, 3) for i in (1, 2)]
    for step in range(12):
        ours.beat(step)
        theirs[0].beat(step)
        if step < 3:
            theirs[1].beat(step)
        time.sleep(0.25)
    assert ours.gone().startswith("process 2 of 3 on ") and "silent" in ours.gone() and "process 1" not in ours.gone()
    assert ours.behind().startswith("process 2 on ") and ours.behind().endswith("at step 2")


@pytest.mark.parametrize("alive, why", [(False, "process 1 of 2 on .* has been silent"), (True, "though all processes live; process 1 on .* is behind, at step 0")])
def test_the_run_is_given_up_where_others_are_gone_or_stuck(tmp_path, fast, monkeypatch, alive, why):
    ended = []
    monkeypatch.setattr(watchdog, "give_up", lambda text: ended.append(text))
    client = Client()
    ours, theirs = Peers(client, 0, 2), Peers(client, 1, 2)
    with Watchdog(tmp_path, lambda text: None, ours) as dog:
        theirs.beat(0)
        for step in (1, 2, 3):
            dog.beat(step)
        for _ in range(14):
            time.sleep(0.5)
            if alive:
                theirs.beat(0)
    assert re.search(why, ended[0])
