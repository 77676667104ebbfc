"""Which rows of heads go on with other classes, against the layouts written out here."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from detector.engine.weights.class_rows import (
    ClassRows,
    carry_rows,
    class_rows,
    match_names,
    rows_fit,
)
from detector.roi_heads.box import BoxPredictor
from detector.roi_heads.keypoint_heads import KeypointHead
from detector.roi_heads.mask_heads import FCNMaskHead, MLPMaskHead


@pytest.mark.parametrize(
    ("former", "names", "by_name", "source", "how"),
    [
        (["a", "b"], ["a", "b"], False, (0, 1), "same"),
        (["a", "b"], ["b", "a"], False, (1, 0), "name"),  # nothing else can be meant
        (["a", "b"], ["c", "d"], False, (0, 1), "order"),
        (["a", "b"], ["b", "c"], False, (0, 1), "order"),
        (["a", "b"], ["b", "c"], True, (1, None), "name"),
        (["a", "b"], ["c"], False, (None,), "none"),
        (["a", "b"], ["b"], False, (None,), "none"),
        (["a", "b"], ["c", "d"], True, (None, None), "none"),
        (["a", "b", "c"], ["c", "d", "a", "e"], True, (2, None, 0, None), "name"),
        (["traffic light", "cat"], ["Cat", "Traffic_Light"], True, (1, 0), "name"),
        (["Cat", "dog"], ["cat", "CAT"], True, (None, None), "none"),  # which of them is not said
        (["cat", "dog"], ["cat", "CAT"], True, (0, None), "name"),
    ],
)
def test_names_and_the_rows_they_take(former, names, by_name, source, how) -> None:
    match = match_names(former, names, by_name)
    assert (match.source, match.how) == (source, how)
    assert match.carried == [
        name for name, place in zip(names, source, strict=True) if place is not None
    ]


def test_the_heads_say_which_rows_are_of_classes() -> None:
    model = nn.ModuleDict(
        {
            "own": BoxPredictor(4, 3),
            "agnostic": BoxPredictor(4, 3, class_agnostic=True),
            "masks": FCNMaskHead(4, 3, 1, 4),
            "softmax": FCNMaskHead(4, 3, 1, 4, masks="softmax"),
            "one": FCNMaskHead(4, 3, 1, 4, masks="class_agnostic"),
            "flat": MLPMaskHead(4, 3, 2, 4, mask_size=5),
            "points": KeypointHead(4, 3, 1, 4),
        }
    )
    found = class_rows(model)
    expected = {
        "own.scores": (1, 3 + 1),
        "own.deltas": (4, 12),
        "agnostic.scores": (1, 3 + 1),
        "masks.logits": (1, 3),
        "softmax.logits": (1, 3 + 1),
        "flat.logits": (25, 75),
        "points.deconv": (1, 3),
    }
    state = model.state_dict()
    assert set(found) == {f"{layer}.{kind}" for layer in expected for kind in ("weight", "bias")}
    for name, rows in found.items():
        per_name, count = expected[name.rpartition(".")[0]]
        assert rows.per_name == per_name and state[name].shape[rows.dim] == count, name
        assert rows.of == ("keypoints" if name.startswith("points") else "classes")
    assert found["points.deconv.weight"].dim == 1  # (in, J, 4, 4)


def numbered(count: int, per_name: int = 1, dim: int = 0) -> torch.Tensor:
    """Rows whose value says which they are: 10 * name + place within the name."""
    rows = [10.0 * name + place for name in range(count) for place in range(per_name)]
    value = torch.tensor(rows)[:, None].expand(-1, 2).clone()
    return value.movedim(0, dim)


@pytest.mark.parametrize("dim", [0, 1])
@pytest.mark.parametrize("per_name", [1, 4])
@pytest.mark.parametrize("background", [0, 1])
def test_rows_go_where_their_names_are(dim: int, per_name: int, background: int) -> None:
    match = match_names(["a", "b", "c"], ["c", "x", "a", "y"], by_name=True)
    rows = ClassRows("classes", per_name, dim)
    former = numbered(3 + background, per_name, dim)
    own = -1 - numbered(4 + background, per_name, dim)
    assert rows_fit(former, own, rows, match)
    carried = carry_rows(former, own, rows, match).movedim(dim, 0)
    own = own.movedim(dim, 0)
    for to, place in enumerate([2, None, 0, None] + [3] * background):
        for i in range(per_name):
            row = carried[to * per_name + i]
            expected = (
                own[to * per_name + i] if place is None else torch.full((2,), 10.0 * place + i)
            )
            assert torch.equal(row, expected)


def test_other_differences_are_no_matter_of_names() -> None:
    match = match_names(["a", "b"], ["c"], by_name=False)
    rows = ClassRows("classes", 4)
    assert rows_fit(torch.zeros(8, 3), torch.zeros(4, 3), rows, match)
    assert not rows_fit(torch.zeros(8, 5), torch.zeros(4, 3), rows, match)  # another width
    assert not rows_fit(torch.zeros(4, 3), torch.zeros(4, 3), rows, match)  # one box for all
    assert not rows_fit(torch.zeros(12, 3), torch.zeros(4, 3), rows, match)  # with background
    assert not rows_fit(torch.zeros(8), torch.zeros(4, 3), rows, match)
