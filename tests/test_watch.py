"""What takes long is told, and again, and no more once it is there."""

import re
import time

import pytest

from defect_jax import watch


@pytest.fixture(autouse=True)
def impatient(monkeypatch):
    monkeypatch.setattr(watch, "_PATIENCE", 0.0)
    monkeypatch.setattr(watch, "_LOOK_EVERY", 0.01)


def test_a_wait_is_told_again_and_ends(capsys):
    told = ""
    with watch.waiting(120, watch.DEVICES), watch.waiting(121, watch.STORAGE):
        while told.count("step 120") < 2 or told.count("step 121") < 2:
            time.sleep(0.01)
            told += capsys.readouterr().out
    line = re.compile(r"step 12[01]: waiting \d+ s for (the devices|a checkpoint) ?.*")
    assert all(line.fullmatch(one) for one in told.splitlines())
    time.sleep(0.05)
    capsys.readouterr()
    time.sleep(0.05)
    assert capsys.readouterr().out == ""


def test_an_error_ends_the_wait(capsys):
    with pytest.raises(KeyError), watch.waiting(1, watch.DATA):
        raise KeyError
    assert not watch._waits


def test_what_is_quick_is_not_told(capsys, monkeypatch):
    monkeypatch.setattr(watch, "_PATIENCE", 1e9)
    with watch.waiting(1, watch.DATA):
        time.sleep(0.05)
    assert capsys.readouterr().out == ""
