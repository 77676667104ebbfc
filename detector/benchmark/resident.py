"""What a process holds in memory, now and at most."""

from __future__ import annotations

from pathlib import Path

_STATUS, _CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


class Growth:
    """By how much the process grows from here on, in bytes.

    Linux forgets the former peak and tells the present size. Elsewhere only the peak of the whole
    process is known, so that what it held before at most is not seen again.
    """

    def __init__(self) -> None:
        if _CLEAR.exists():
            _CLEAR.write_text("5")
        self._held = _field("VmRSS") if _STATUS.exists() else _highest()

    def now(self) -> int:
        """What it holds more than at the beginning; where that is not known, the peak."""
        return _field("VmRSS") - self._held if _STATUS.exists() else self.peak()

    def peak(self) -> int:
        """What it held more at most."""
        return (_field("VmHWM") if _STATUS.exists() else _highest()) - self._held


def _field(name: str) -> int:
    lines = _STATUS.read_text().splitlines()
    [line] = [line for line in lines if line.startswith(f"{name}:")]
    return int(line.split()[1]) * 1024


def _highest() -> int:
    import resource  # not on Windows

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # bytes on a Mac
