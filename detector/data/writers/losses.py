"""What a format cannot hold, counted while writing and said once."""

from __future__ import annotations

from detector.data.index import AnnotationIndex


class Losses:
    """Counts of what is left out or changed, and an example of each kind."""

    def __init__(self) -> None:
        self._counts: dict[str, tuple[int, str]] = {}

    def add(self, what: str, example: str) -> None:
        """Counts one object of which ``what`` is lost."""
        count, first = self._counts.get(what, (0, example))
        self._counts[what] = count + 1, first

    def add_keypoints(self, index: AnnotationIndex, form: str) -> None:
        """Says that a format holds no keypoints, where there are any."""
        if index.has_keypoints:
            self.add(f"{form} has no keypoints: the dataset's are lost", "all objects")

    def notes(self) -> list[str]:
        """One sentence per kind."""
        return [
            f"{what} ({count} object{'s' if count > 1 else ''}, first {example})"
            if example != "all objects"
            else what
            for what, (count, example) in self._counts.items()
        ]
