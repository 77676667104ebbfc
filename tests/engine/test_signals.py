import os
import pty
import signal
import subprocess
import sys

import pytest

from detector.engine.signals import StopRequest


@pytest.mark.parametrize(
    ("number", "code"),
    [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGUSR1, 138), (signal.SIGHUP, 129)],
)
def test_a_signal_is_remembered_and_the_former_handler_comes_back(number, code: int) -> None:
    former = signal.getsignal(number)
    if number == signal.SIGHUP and former is signal.SIG_IGN:
        pytest.skip("these tests run under nohup")
    with StopRequest() as stop:
        assert not stop
        os.kill(os.getpid(), number)
        assert stop and stop.signal == number and stop.exit_code == code
    assert signal.getsignal(number) is former


def test_the_second_ctrl_c_ends_at_once() -> None:
    # Tests that run in the background may have been started with SIGINT ignored.
    former = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt), StopRequest():
            os.kill(os.getpid(), signal.SIGINT)
            os.kill(os.getpid(), signal.SIGINT)
    finally:
        signal.signal(signal.SIGINT, former)


def test_under_nohup_a_closed_terminal_stops_nothing() -> None:
    former = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with StopRequest() as stop:
            os.kill(os.getpid(), signal.SIGHUP)
            assert not stop
    finally:
        signal.signal(signal.SIGHUP, former)


PROGRAM = """
import sys
from detector.engine.signals import StopRequest
with StopRequest() as stop:
    print("ready", flush=True)
    while not stop:
        pass
    print("to a terminal that is gone", flush=True)
    print("and to its errors", file=sys.stderr, flush=True)
open(sys.argv[1], "w").write(stop.signal.name)
"""


def test_a_terminal_that_is_closed_is_let_go_of_before_the_work_is_saved(tmp_path) -> None:
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-c", PROGRAM, str(tmp_path / "saved")],
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        start_new_session=True,
    )
    os.close(theirs)
    assert os.read(ours, 5) == b"ready"
    os.close(ours)  # from here on a write is an error
    process.send_signal(signal.SIGHUP)
    assert process.wait(timeout=60) == 0
    assert (tmp_path / "saved").read_text() == "SIGHUP"
