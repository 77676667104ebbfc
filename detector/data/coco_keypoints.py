"""The keypoints of a COCO file: what its categories call them, and the annotations' own, checked.

The format: https://cocodataset.org/#format-data, "Keypoint Detection". ``keypoint_sigmas`` of a
category is an extension: the constants of COCO's object keypoint similarity for other objects than
its persons.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from detector.data.problems import DamagedRecord

REMEDY = "correct the keypoints or remove the annotation"

# COCO's coordinates are indices of pixels, whose centres lie half a pixel further.
_PIXEL_CENTRE = 0.5
# Annotators guess joints just beyond the border. What lies further outside, as a fraction of the
# image's longer side, was measured in other units or belongs to another image.
_FAR_OUTSIDE = 0.1
_SIDES = (("left_", "right_"), ("right_", "left_"))


@dataclass(frozen=True)
class KeypointNames:
    """What the J keypoints of an object are; all empty for J = 0.

    Attributes:
        names: J names.
        flip: J indices, what each becomes in a mirror.
        skeleton: pairs of indices to connect.
        sigmas: J positive numbers, or ``None``.
    """

    names: list[str] = field(default_factory=list)
    flip: list[int] = field(default_factory=list)
    skeleton: list[tuple[int, int]] = field(default_factory=list)
    sigmas: list[float] | None = None


def read_keypoint_names(
    records: list[dict], file: Path, flip_pairs: Sequence[Sequence[str]] | None = None
) -> tuple[KeypointNames, set[int]]:
    """The keypoints that the categories of a file name, which must be the same for all that do.

    Args:
        records: the category records, their ids already checked.
        file: named in messages.
        flip_pairs: names that change places in a mirror; by default ``left_*`` and ``right_*``.

    Returns:
        The keypoints, and the ids of the categories that have them.

    Raises:
        ValueError: the names, the skeleton or the sigmas make no sense, or categories differ.
    """
    found, having, first = KeypointNames(), set(), None
    for record in records:
        if not record.get("keypoints"):
            continue
        category = f"{file}: category {record['id']}"
        names = _read_names(record["keypoints"], category)
        described = KeypointNames(
            names,
            _read_flip(names, flip_pairs, category),
            _read_skeleton(record.get("skeleton"), len(names), category),
            _read_sigmas(record.get("keypoint_sigmas"), len(names), category),
        )
        if having and described != found:
            raise ValueError(
                f"{category} and category {first} have different keypoints; give them the same "
                "keypoints, skeleton and keypoint_sigmas, or train on them one by one"
            )
        first = record["id"] if first is None else first
        found = described
        having.add(record["id"])
    return found, having


def _read_names(value: Any, category: str) -> list[str]:
    if not isinstance(value, list) or not all(isinstance(name, str) and name for name in value):
        raise ValueError(f"{category}: keypoints is {value!r}; it must be a list of names")
    for name in value:
        if value.count(name) > 1:
            raise ValueError(f'{category}: two keypoints are named "{name}"; rename one')
    return list(value)


def _read_flip(names: list[str], pairs: Sequence[Sequence[str]] | None, category: str) -> list[int]:
    option = "keypoint_flip: [[name, name], ...]"
    if pairs is None:
        other_of = {}
        for name in names:
            for side, other_side in _SIDES:
                if name.startswith(side):
                    other_of[name] = other_side + name.removeprefix(side)
        for name, other in other_of.items():
            if other not in names:
                raise ValueError(
                    f'{category} has a keypoint "{name}" and none named "{other}", so what it is '
                    f"in a mirror is not known; rename it, or give the dataset {option}, or [] if "
                    "none change places"
                )
    else:
        if not all(isinstance(pair, list | tuple) and len(pair) == 2 for pair in pairs):
            raise ValueError(f"keypoint_flip is {pairs!r}; write {option}")
        other_of = {a: b for one, other in pairs for a, b in ((one, other), (other, one))}
        for name in other_of:
            if name not in names:
                raise ValueError(
                    f'keypoint_flip names "{name}", which is no keypoint; {category} has '
                    f"{', '.join(names)}"
                )
        if len(other_of) != 2 * len(pairs):
            raise ValueError(f"keypoint_flip is {pairs!r}: a keypoint stands in it twice")
    return [names.index(other_of.get(name, name)) for name in names]


def _read_skeleton(value: Any, num_keypoints: int, category: str) -> list[tuple[int, int]]:
    pairs = value if value is not None else []
    if not isinstance(pairs, list) or not all(
        isinstance(pair, list)
        and len(pair) == 2
        and all(type(end) is int and 1 <= end <= num_keypoints for end in pair)
        for pair in pairs
    ):
        raise ValueError(
            f"{category}: skeleton is {value!r}; it must be pairs of keypoint numbers from 1 to "
            f"{num_keypoints}"
        )
    return [(first - 1, second - 1) for first, second in pairs]


def _read_sigmas(value: Any, num_keypoints: int, category: str) -> list[float] | None:
    if value is None:
        return None
    if (
        not isinstance(value, list)
        or len(value) != num_keypoints
        or not all(type(sigma) in (int, float) and 0 < sigma < np.inf for sigma in value)
    ):
        raise ValueError(
            f"{category}: keypoint_sigmas is {value!r}; it must be {num_keypoints} positive "
            "numbers, one for each keypoint"
        )
    return [float(sigma) for sigma in value]


@dataclass
class KeypointColumns:
    """Keypoints as flat columns. A *row* is the number of an annotation.

    Attributes:
        described: what the keypoints are.
        categories: ids of the categories that have keypoints.
        numbers: of all annotations, ``3 * J`` each.
        declared: the ``num_keypoints`` of each annotation, -1 where it says none.
    """

    described: KeypointNames = field(default_factory=KeypointNames)
    categories: set[int] = field(default_factory=set)
    numbers: array = field(default_factory=lambda: array("d"))
    declared: array = field(default_factory=lambda: array("q"))

    @property
    def num_keypoints(self) -> int:
        """J."""
        return len(self.described.names)

    def parse(self, record: dict) -> tuple[array, int]:
        """The numbers of one annotation record, to be added if the rest of it is good.

        Raises:
            DamagedRecord: it can be seen at once that they are not keypoints.
        """
        length = 3 * self.num_keypoints
        value, declared = record.get("keypoints"), record.get("num_keypoints")
        if length == 0:
            return array("d"), -1
        if declared is None:
            declared = -1
        elif type(declared) is not int or not 0 <= declared <= self.num_keypoints:
            raise DamagedRecord(
                f"num_keypoints {declared!r} is not a number from 0 to {self.num_keypoints}", REMEDY
            )
        if value is None or value == []:
            return array("d", bytes(8 * length)), declared
        if record["category_id"] not in self.categories:
            raise DamagedRecord("it has keypoints but its category names none", REMEDY)
        if not isinstance(value, list) or len(value) != length:
            what = f"{len(value)} numbers" if isinstance(value, list) else repr(value)
            raise DamagedRecord(
                f"keypoints are {what}, not {length}: x, y, visibility of each of "
                f"{self.num_keypoints}",
                REMEDY,
            )
        try:
            return array("d", value), declared
        except (TypeError, OverflowError):
            raise DamagedRecord("keypoints are not made of numbers", REMEDY) from None

    def add(self, numbers: array, declared: int) -> None:
        """Takes what :meth:`parse` made of the next annotation."""
        self.numbers.extend(numbers)
        self.declared.append(declared)

    def add_none(self, count: int) -> None:
        """Takes ``count`` annotations of a file without keypoints."""
        assert self.num_keypoints == 0
        self.declared.extend([-1] * count)

    def rows(
        self, heights: np.ndarray, widths: np.ndarray
    ) -> tuple[np.ndarray, list[tuple[int, str]]]:
        """The keypoints of all annotations, and what is wrong with some.

        Args:
            heights: of each annotation's image, ``(rows,)``.
            widths: likewise.

        Returns:
            ``(rows, J, 3)`` float32 ``(x, y, visibility)`` in continuous pixels, and
            ``(row, what)`` of damaged ones, one at most of each row.
        """
        points = np.array(self.numbers, dtype=np.float64).reshape(
            len(self.declared), self.num_keypoints, 3
        )
        place, visibility = points[..., :2], points[..., 2]
        labelled = visibility != 0
        place[~labelled] = 0  # files hold anything there, NaN too
        place[labelled] += _PIXEL_CENTRE
        size = np.stack([widths, heights], axis=1)[:, None]
        margin = _FAR_OUTSIDE * size.max(axis=2, keepdims=True)
        finite = np.isfinite(place).all(axis=2)
        far = ((place < -margin) | (place > size + margin)).any(axis=2)

        faults: dict[int, str] = {}
        for row, joint in _positions(~np.isin(visibility, (0, 1, 2))):
            what = f"has the visibility {visibility[row, joint]:g}, not 0, 1 or 2"
            faults.setdefault(row, f'its keypoint "{self.described.names[joint]}" {what}')
        for row, joint in _positions(~finite):
            faults.setdefault(row, f'its keypoint "{self.described.names[joint]}" is not finite')
        for row, joint in _positions(far):
            x, y = place[row, joint] - _PIXEL_CENTRE
            what = f"at ({x:g}, {y:g}) lies far outside the {widths[row]}x{heights[row]} image"
            faults.setdefault(row, f'its keypoint "{self.described.names[joint]}" {what}')
        declared, counted = np.array(self.declared, dtype=np.int64), labelled.sum(axis=1)
        for row in np.flatnonzero((declared >= 0) & (declared != counted)).tolist():
            what = f"num_keypoints is {declared[row]} but {counted[row]} of them are labelled"
            faults.setdefault(row, what)
        points[list(faults)] = 0
        return points.astype(np.float32), list(faults.items())


def _positions(wrong: np.ndarray) -> list[list[int]]:
    """Where ``(rows, J)`` bool is true, as pairs of row and keypoint."""
    return np.argwhere(wrong).tolist()
