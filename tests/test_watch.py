"""What takes long is told, and again, and no more once it is there; and which host is to blame."""

import re
import time

import jax
import pytest

from defect_jax import watch


@pytest.fixture(autouse=True)
def impatient(monkeypatch):
    monkeypatch.setattr(watch, "_MOST_PATIENCE", 0.0)
    monkeypatch.setattr(watch, "_LOOK_EVERY", 0.01)
    monkeypatch.setattr(watch, "_patience", {})


def read_until(capsys, text: str, count: int) -> str:
    told = ""
    while told.count(text) < count:
        time.sleep(0.01)
        told += capsys.readouterr().err
    return told


def test_a_wait_is_told_again_and_ends(capsys):
    with watch.waiting(120, watch.DEVICES), watch.waiting(121, watch.STORAGE):
        told = read_until(capsys, "step 120", 2)
    line = re.compile(r"step 120: waiting \d+ s for the devices \(or another host\)")
    assert all(line.fullmatch(one) for one in told.splitlines())
    time.sleep(0.05)
    capsys.readouterr()
    time.sleep(0.05)
    assert capsys.readouterr() == ("", "")


def test_a_wait_that_was_long_before_is_told_later_but_not_much(capsys, monkeypatch):
    monkeypatch.setattr(watch, "_MOST_PATIENCE", 0.1)
    for _ in range(2):
        with watch.waiting(None, watch.PREDICTION):
            read_until(capsys, "for the next image", 2)
        assert 0 < watch._patience[watch.PREDICTION] <= 0.1


def test_an_error_ends_the_wait():
    with pytest.raises(KeyError), watch.waiting(1, watch.DATA):
        raise KeyError
    assert not watch._waits


def test_what_is_quick_is_not_told(capsys, monkeypatch):
    monkeypatch.setattr(watch, "_MOST_PATIENCE", 1e9)
    with watch.waiting(1, watch.DATA):
        time.sleep(0.05)
    assert capsys.readouterr() == ("", "")


OWN = "2 step 7: waiting 21 s for the devices (or another host)"


@pytest.mark.parametrize(
    ("heard", "suspects"),
    [
        ({0: (OWN, 1), 1: (OWN, 3), 2: ("9 step 7: waiting 30 s for the next batch", 2)},
         ["host 2, step 7: waiting 30 s for the next batch"]),
        ({0: (OWN, 1), 1: (OWN, 3), 2: ("9 ", 2)}, ["host 2, busy"]),
        ({0: (OWN, 1), 1: (OWN, 40), 2: ("9 ", 2)}, ["nothing heard of host 1 for 40 s"]),
        # Process 0 has the store: while it hangs nobody hears anything.
        ({0: (OWN, 40), 1: (OWN, 41), 2: (OWN, 42)}, ["nothing heard of host 0 for 41 s"]),
        ({0: (OWN, 1), 1: (OWN, 3), 2: (OWN, 2)}, []),
    ],
)  # fmt: skip
def test_the_host_that_is_to_blame_is_named(monkeypatch, heard, suspects):
    """As host 1 sees it, or host 0 where that has not heard of host 1."""
    own = 0 if suspects and "host 1" in suspects[0] else 1
    monkeypatch.setattr(jax, "process_index", lambda: own)
    now = time.monotonic()
    heard = {host: (told, now - seconds) for host, (told, seconds) in heard.items()}
    monkeypatch.setattr(watch, "_heard", heard)
    assert watch._suspects(watch.DEVICES) == suspects
