"""A training that ends on plain images, resumed on either side of the switch."""

from pathlib import Path

import pytest
from omegaconf import DictConfig

from detector.commands.train import train
from detector.data.end_of_training import OffAtTheEnd
from tests.commands.test_train import assert_same_training


@pytest.fixture
def compose_late(compose_tiny):
    """Mosaics in the first half of four steps of two batches each."""

    def compose(*overrides: str) -> DictConfig:
        cfg = compose_tiny(
            "model=faster_rcnn_fpn",
            "augment=mosaic",
            "augment.off_last_fraction=0.5",
            "augment.val=[]",
            "training.max_steps=4",
            "training.accumulate=2",
            "checkpoint.keep_every=1",
            "evaluation.errors=false",
            "logging.pictures=0",
            *overrides,
        )
        cfg.augment.train = cfg.augment.train[:1]  # small images stay small
        return cfg

    return compose


@pytest.mark.parametrize("limit", ["1h", None])
def test_a_time_limit_may_come_before_the_switch_which_is_said(
    compose_late, tmp_path: Path, capsys, limit
) -> None:
    cfg = compose_late(f"run_dir={tmp_path}", "training.max_steps=2")
    cfg.training.time_limit = limit
    train(cfg)
    text = " ".join(capsys.readouterr().out.split())
    assert ("warning: augment: Mosaic will be off from step 2 on" in text) == (limit is not None)


def test_the_switch_is_at_its_step_and_resuming_does_not_move_it(
    compose_late, tmp_path: Path, monkeypatch
) -> None:
    seen = {}
    is_off = OffAtTheEnd.is_off

    def watched(self, moment):
        found = is_off(self, moment)
        assert moment.num_steps == 4
        assert seen.setdefault(moment.step, found) == found
        return found

    with monkeypatch.context() as patch:
        patch.setattr(OffAtTheEnd, "is_off", watched)
        train(compose_late(f"run_dir={tmp_path / 'whole'}"))
    assert seen == {0: False, 1: False, 2: True, 3: True}
    whole = tmp_path / "whole" / "checkpoints"
    for step, num_workers in ((1, 2), (2, 0)):
        resumed = tmp_path / f"from_{step}"
        checkpoint = whole / f"step_{step:08d}.pt"
        train(
            compose_late(
                f"run_dir={resumed}", f"resume={checkpoint}", f"data.num_workers={num_workers}"
            )
        )
        assert_same_training(whole / "last.pt", resumed / "checkpoints/last.pt")
