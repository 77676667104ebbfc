import io

from rich.console import Console

from detector.engine import progress
from detector.engine.progress import LiveDisplay, ProgressDisplay, open_display

VALUES = {
    "loss": 1.5,
    "loss_box": 0.5,
    "gradient_norm": 2.0,
    "lr": 0.02,
    "images_per_second": 8.0,
    "memory_gib": 1.25,
}


def test_a_pipe_gets_plain_lines_with_what_one_wants_to_know() -> None:
    out = io.StringIO()
    with open_display(100, console=Console(file=out, width=40)) as display:
        assert type(display) is ProgressDisplay
        display.advance(40)
        display.report(VALUES, seconds_per_step=2.0)
        assert list(display.track([1, 2], 2, "evaluating", "batches")) == [1, 2]
    first, second = out.getvalue().splitlines()
    assert first == (
        "step 40/100  loss 1.5 (box 0.5)  gradient 2  lr 0.02  8 images/s  1.25 GiB  ETA 0:02:00"
    )
    assert second.startswith("evaluating: 2 batches in 0:00:0")
    assert "\x1b" not in out.getvalue()


def test_a_pipe_is_told_that_a_long_evaluation_goes_on(monkeypatch) -> None:
    monkeypatch.setattr(progress, "SILENCE", -1.0)
    out = io.StringIO()
    with open_display(100, console=Console(file=out, width=40)) as display:
        assert list(display.track("ab", 2, "evaluating", "batches")) == ["a", "b"]
    said = out.getvalue().splitlines()
    assert said[:2] == ["evaluating: 0/2 batches", "evaluating: 1/2 batches"] and len(said) == 3


def test_brackets_in_paths_and_patterns_are_shown(capsys) -> None:
    open_display(1).print("photos/[ab]*.jpg and [/x]")
    assert capsys.readouterr().out == "photos/[ab]*.jpg and [/x]\n"


def test_a_terminal_gets_a_bar_that_starts_at_the_resumed_step() -> None:
    out = io.StringIO()
    console = Console(file=out, width=100, force_terminal=True)
    with open_display(100, 30, console=console) as display:
        assert isinstance(display, LiveDisplay)
        display.advance(31)
        display.report(VALUES, seconds_per_step=1.0)
        display.advance(32)
        assert list(display.track("ab", 2, "evaluating", "batches")) == ["a", "b"]
    text = out.getvalue()
    assert "32/100" in text and "loss 1.5" in text and "ETA 0:01:08" in text


def test_what_goes_on_between_reports_stands_in_the_bar_and_warnings_above_it() -> None:
    out = io.StringIO()
    with LiveDisplay(Console(file=out, force_terminal=True, highlight=False), 10) as display:
        display.note("recorded steps of 16 images")
        assert display._values.plain == "recorded steps of 16 images"
        display.note("warning: steps of 16 images have no graph")
        assert display._values.plain == "recorded steps of 16 images"
    assert "warning: steps of 16 images have no graph" in out.getvalue()
    pipe = io.StringIO()
    with open_display(10, console=Console(file=pipe, width=40)) as display:
        display.note("recorded steps of 16 images, 1 of at most 8, in 1.2 s")
    assert pipe.getvalue() == "recorded steps of 16 images, 1 of at most 8, in 1.2 s\n"


def _shown(amounts: list[int], unit: str = "files", terminal: bool = True) -> str:
    out = io.StringIO()
    console = Console(file=out, width=100, force_terminal=terminal)
    with progress.late_bar("checking images", 4, unit, console) as advance:
        for amount in amounts:
            advance(amount)
    return out.getvalue()


def test_a_terminal_gets_a_bar_of_work_that_takes_long(monkeypatch):
    monkeypatch.setattr(progress, "PATIENCE", -1.0)
    text = _shown([1, 1])
    assert "checking images" in text and "2/4" in text
    assert "kB" in _shown([1, 1], unit="bytes") or "bytes" in _shown([1, 1], unit="bytes")


def test_short_work_and_pipes_get_none(monkeypatch):
    monkeypatch.setattr(progress, "PATIENCE", 3600.0)
    assert _shown([1, 1, 2]) == ""
    monkeypatch.setattr(progress, "PATIENCE", -1.0)
    assert _shown([1, 1, 2], terminal=False) == ""


def test_another_bar_is_left_alone(monkeypatch):
    monkeypatch.setattr(progress, "PATIENCE", -1.0)
    console = Console(file=io.StringIO(), width=100, force_terminal=True)
    with progress.open_display(10, console=console) as display:
        with progress.late_bar("checking images", 2, "files", console) as advance:
            advance(1)
        display.advance(3)
    assert "3/10" in console.file.getvalue()
