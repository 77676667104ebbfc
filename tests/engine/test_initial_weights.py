from pathlib import Path

import pytest
from omegaconf import OmegaConf

from detector.engine.initial_weights import check_initial_weights


def warnings(**backbone: object) -> list[str]:
    return check_initial_weights(OmegaConf.create({"backbone": backbone}))


def test_freezing_random_values_is_said_with_the_remedy() -> None:
    [both] = warnings(weights=None, norm="frozen_bn", freeze_at=2)
    assert "norm=frozen_bn and freeze_at=2 keep it so" in both
    assert "model.backbone.norm=bn model.backbone.freeze_at=0" in both
    [frozen] = warnings(weights=None, freeze_at=2)  # a trunk without normalisation
    assert "norm" not in frozen and "freeze_at=2 keeps it so" in frozen


def test_random_values_that_learn_and_loaded_ones_pass(tmp_path: Path) -> None:
    assert warnings(weights=None, norm="bn", freeze_at=0) == []
    assert warnings(width=8) == check_initial_weights(OmegaConf.create({})) == []
    (tmp_path / "trunk.pth").touch()
    weights = str(tmp_path / "trunk.pth")
    assert warnings(weights=weights, norm="frozen_bn", freeze_at=2) == []


def test_a_missing_file_is_named() -> None:
    with pytest.raises(FileNotFoundError, match=r"nowhere\.pth: no such weights file"):
        warnings(weights="nowhere.pth")
