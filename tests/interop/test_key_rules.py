"""Tables of names: patterns, transforms and their inverses."""

from __future__ import annotations

import pytest
import torch

from detector.interop.key_rules import (
    SAME,
    BackgroundFirst,
    KeyRule,
    KeyTable,
    ReorderedRows,
    ReversedChannels,
    Transform,
    UnknownKeys,
    UnusedBackground,
)


def rows(*values: int) -> torch.Tensor:
    return torch.tensor(values)


@pytest.mark.parametrize(
    ("transform", "theirs", "ours"),
    [
        (SAME, rows(1, 2), rows(1, 2)),
        (BackgroundFirst(), rows(0, 1, 2), rows(1, 2, 0)),
        (BackgroundFirst(2), rows(0, 10, 1, 11), rows(1, 11, 0, 10)),
        (UnusedBackground(2), rows(0, 0, 1, 2), rows(1, 2)),
        # Group 0 of ours is their 2, ...: the anchor that stands there third comes first here.
        (ReorderedRows((2, 0, 1)), rows(0, 1, 2), rows(2, 0, 1)),
        (ReorderedRows((1, 0), rows=2), rows(0, 1, 2, 3), rows(2, 3, 0, 1)),
    ],
)
def test_transforms_move_rows_and_come_back(transform: Transform, theirs, ours) -> None:
    assert torch.equal(transform.to_ours(theirs), ours)
    assert torch.equal(transform.to_theirs(ours), theirs)


def test_the_three_channels_of_an_image_change_places() -> None:
    weight = torch.rand(4, 3, 2, 2)
    assert torch.equal(ReversedChannels().to_ours(weight)[:, 0], weight[:, 2])
    assert torch.equal(ReversedChannels().to_theirs(ReversedChannels().to_ours(weight)), weight)


def test_a_tensor_of_another_shape_is_not_reordered() -> None:
    """Its shape is then reported as it is in the file."""
    assert torch.equal(ReorderedRows((1, 0)).to_ours(rows(1, 2, 3)), rows(1, 2, 3))


TABLE = KeyTable(
    (
        KeyRule("fc.{rest:any}", None),
        KeyRule("head.5.{kind}", "head.fc.{kind}"),
        KeyRule("head.{conv:int}.{kind}", "head.convs.{conv}.{kind}"),
        KeyRule("body.{rest:any}", "trunk.{rest:any}"),
        KeyRule("scores.{kind}", "predictor.{kind}", BackgroundFirst()),
    )
)


def test_names_are_translated_both_ways() -> None:
    pairs = {
        "head.5.weight": "head.fc.weight",
        "head.3.bias": "head.convs.3.bias",
        "body.layer1.0.conv1.weight": "trunk.layer1.0.conv1.weight",
        "scores.bias": "predictor.bias",
    }
    for theirs, ours in pairs.items():
        assert TABLE.our_name(theirs) == ours
        assert TABLE.their_name(ours) == theirs
    assert TABLE.our_name("fc.weight") is None
    assert TABLE.unknown(["fc.weight", "head.x.weight", "head.3.a.b", "bodyweight"]) == [
        *("head.x.weight", "head.3.a.b", "bodyweight")
    ]
    assert TABLE.their_name("other") is None


def test_what_is_written_reads_back_bit_for_bit() -> None:
    state = {"predictor.weight": torch.rand(4, 2), "trunk.conv1.weight": torch.rand(2)}
    state["predictor.weight"][0, 0] = -0.0
    theirs = TABLE.to_theirs(state)
    assert list(theirs) == ["scores.weight", "body.conv1.weight"]
    assert torch.equal(theirs["scores.weight"][0], state["predictor.weight"][-1])
    again = TABLE.to_ours({**theirs, "fc.weight": torch.rand(1)})
    assert list(again) == list(state)
    for name, value in state.items():
        assert again[name].numpy().tobytes() == value.numpy().tobytes()


def test_unknown_names_and_names_that_fall_together_are_refused() -> None:
    with pytest.raises(UnknownKeys) as error:
        TABLE.to_ours({"body.a": rows(1), "neck.a": rows(1)})
    assert error.value.names == ["neck.a"]
    with pytest.raises(UnknownKeys, match=r"mask\.a"):
        TABLE.to_theirs({"mask.a": rows(1)})
    table = KeyTable((KeyRule("a.{x}", "c.{x}"), KeyRule("b.{x}", "c.{x}")))
    with pytest.raises(ValueError, match=r"b\.w: another name stands for c\.w too"):
        table.to_ours({"a.w": rows(1), "b.w": rows(2)})
    with pytest.raises(ValueError, match="different places"):
        KeyRule("a.{x}", "b.{y}")
