"""How far a command is: the demonstration's clock, and lines where there is no terminal."""

from contextlib import nullcontext

import pytest

from maury.cli import terminal
from maury.cli.demo import PLAN, Clock
from maury.training.processes import MemberEvent

STAGES = {"first": 10.0, "second": 20.0, "third": 10.0}


class Watch:
    """Time that a test sets."""

    def __init__(self):
        self.time = 0.0

    def __call__(self):
        return self.time


def test_the_time_left_follows_what_the_stages_took():
    watch, told = Watch(), []
    clock = Clock(STAGES, announce=told.append, now=watch)
    clock.begin("first", "the first")
    # Nothing is known yet but the plan.
    assert clock.seconds_left == pytest.approx(40.0)
    watch.time = 30.0
    clock.begin("second", "the second")
    # 30 s for 10 of the plan; the guess for 5 s more: 35 / 15 for the 30 that are left.
    assert clock.share == pytest.approx(0.25)
    assert clock.seconds_left == pytest.approx(70.0)
    clock.count(1, 2)
    assert clock.share == pytest.approx(0.5)
    assert clock.seconds_left == pytest.approx(35 / 25 * 20)
    assert told == ["the first", "the second"]


def test_a_stage_that_tells_nothing_goes_on_and_never_ends_by_itself():
    watch = Watch()
    clock = Clock(STAGES, now=watch)
    clock.begin("first", "")
    shares = []
    for watch.time in (0.0, 3.0, 6.0, 1000.0):
        shares.append(clock.share)
    assert shares == sorted(set(shares))
    assert shares[-1] == pytest.approx(0.95 * 0.25)


def test_stages_that_a_stopped_run_has_done_are_no_part_of_the_rest():
    watch = Watch()
    clock = Clock(STAGES, now=watch)
    watch.time = 2.0
    clock.begin("third", "")
    assert clock.share == 0.0
    assert clock.seconds_left == pytest.approx((2.0 + 5.0) / 5.0 * 10.0)
    clock.count(1, 1)
    assert clock.share == 1.0


def test_a_pipe_gets_lines_with_the_time_left(capsys, monkeypatch):
    monkeypatch.setattr(terminal, "LINE_SECONDS", 0.0)
    clock = Clock(PLAN)
    clock.begin("labelled", "simulating")
    with terminal.whole(clock):
        # The thread writes without being asked; the test waits for what it must write.
        said = ""
        while said.count("\n") < 3:
            said += capsys.readouterr().err
    assert said.splitlines()[0].startswith("simulating: 0% of all, ")
    assert said.splitlines()[0].endswith(" left")


def test_lines_of_any_bar():
    watch = Watch()
    bars = terminal._new_bars()
    assert bars.disable
    lines = terminal._Lines(bars, "training", now=watch)
    assert lines.text() == "training, 1 s since the start"
    # Lines ten seconds apart differ, also after minutes.
    for seconds, said in ((70.0, "1 min 10 s"), (80.0, "1 min 20 s"), (5000.0, "1 h 23 min")):
        watch.time = seconds
        assert lines.text() == f"training, {said} since the start"
    watch.time = 0.0
    one, two = (bars.add_task("", total=100, completed=done) for done in (40, 0))
    # What an earlier run has done says nothing of the pace of this one.
    assert lines.text() == "training: 20%"
    watch.time = 30.0
    bars.update(one, completed=60)
    bars.update(two, completed=20)
    assert lines.text() == "training: 40%, 2 min left"
    for task in (one, two):
        bars.update(task, completed=100)
    # Lines differ while what follows is not counted, and say what it is where they are told.
    assert lines.text() == "training: 100%, and what follows, 30 s since the start"
    watch.time = 40.0
    assert lines.text() == "training: 100%, and what follows, 40 s since the start"
    lines.stage = "calibrating errors"
    assert lines.text() == "calibrating errors, 40 s since the start"


def test_members_that_have_not_begun_are_counted(capsys, monkeypatch):
    made = []
    monkeypatch.setattr(terminal, "_told_by", lambda lines: made.append(lines) or nullcontext())
    with terminal.member_bars() as (progress, stage):
        stage("training 2 networks")
        # Numbers of members that a resumed run still trains need not begin at 0.
        progress(MemberEvent(5, 10, 10, 0.1, None, n_members=2))
        assert made[0].text() == "training: 50%"
        progress(MemberEvent(3, 5, 10, 0.1, None, n_members=2))
        assert made[0].text().startswith("training: 75%")
        progress(MemberEvent(3, 10, 10, 0.1, None, n_members=2))
        stage("auditing")
        assert made[0].text() == "auditing, 1 s since the start"
    assert capsys.readouterr().err.splitlines() == ["training 2 networks", "auditing"]


def test_lines_name_what_is_done_now():
    bars = terminal._new_bars()
    lines = terminal._Lines(bars, "", now=Watch())
    assert lines.text() == ""
    task = bars.add_task("", total=None)
    bars.update(task, description="drawing: accuracy")
    assert lines.text() == "drawing: accuracy, 1 s since the start"


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(0.2, "1 s"), (59.4, "59 s"), (89.0, "1 min"), (91.0, "2 min"), (5400.0, "1 h 30 min")],
)
def test_durations(seconds, words):
    assert terminal._duration(seconds) == words


def test_lines_come_less_often_in_a_long_run():
    assert terminal._between(100.0) == 10.0
    assert terminal._between(36_000.0) == 720.0
