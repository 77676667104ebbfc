import os
import signal

import pytest

from detector.engine.signals import StopRequest


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGUSR1, 138)]
)
def test_a_signal_is_remembered_and_the_former_handler_comes_back(number, code: int) -> None:
    former = signal.getsignal(number)
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
