from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf
from torch import nn

from detector.backbones.freezing import Freezable
from detector.commands.train import train
from detector.engine.checkpoint import load_checkpoint, save_checkpoint
from detector.engine.weight_average import WeightAverage
from detector.engine.weights.initial_weights import (
    check_initial_weights,
    freeze_parts,
    load_initial_parts,
)


class Pair(Freezable):
    """Two parts of the same kind."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
        self.head = nn.Linear(2, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.backbone(x))


def write(path: Path, model: nn.Module) -> Path:
    content = {"format": 1, "config": "", "class_names": [], "category_ids": [], "step": 1}
    save_checkpoint(path, content | {"model": model.state_dict()})
    return path


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


def test_pixels_that_a_trunk_was_not_trained_with_are_said(tmp_path: Path) -> None:
    """MSRA's networks of Detectron2 take pixels that are not divided."""
    norm = {"norm." + key: torch.ones(64) for key in ("weight", "bias", "running_mean")}
    state = {f"stem.conv1.{key}": value for key, value in norm.items()}
    state |= {"stem.conv1.norm.running_var": torch.ones(64)}
    state |= {"stem.conv1.weight": torch.ones(64, 3, 7, 7)}
    state |= {f"res2.0.conv{n}.weight": torch.ones(64, 64, 1, 1) for n in (1, 2, 3)}
    torch.save(state, tmp_path / "R-50.pth")

    def said(weights: str, mean: list[float], std: list[float]) -> list[str]:
        model = {"backbone": {"weights": weights}, "normalizer": {"mean": mean, "std": std}}
        return check_initial_weights(OmegaConf.create(model))

    mean, std, ones = [123.675, 116.28, 103.53], [58.395, 57.12, 57.375], [1.0, 1.0, 1.0]
    msra = str(tmp_path / "R-50.pth")
    [sentence] = said(msra, mean, std)
    assert "set model.normalizer.mean=[123.675,116.28,103.53] model.normalizer.std=[1,1,1]" in (
        sentence
    )
    assert said(msra, mean, ones) == said(msra, [122.77, 115.95, 102.98], ones) == []
    assert len(said(msra, mean[::-1], ones)) == 1
    theirs = "torchvision://ResNet50_Weights.IMAGENET1K_V2"
    assert said(theirs, mean, std) == []
    assert "std=[58.395,57.12,57.375]" in said(theirs, mean, ones)[0]


def test_a_missing_file_is_named() -> None:
    with pytest.raises(FileNotFoundError, match=r"nowhere\.pth: no such weights file"):
        warnings(weights="nowhere.pth")


def test_a_part_begins_as_another_training_left_it(tmp_path: Path) -> None:
    model, other = Pair(), Pair()
    other(torch.rand(4, 2))  # its statistics are taken too
    head = model.head.weight.clone()
    load_initial_parts(model, {"backbone": write(tmp_path / "other.pt", other), "head": None})
    for name, value in other.backbone.state_dict().items():
        assert torch.equal(model.backbone.state_dict()[name], value), name
    assert torch.equal(model.head.weight, head)


def test_parts_that_are_not_there_or_do_not_fit_are_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "other.pt", Pair())
    with pytest.raises(ValueError, match=r"init\.rpn=.*Pair has no part rpn, it has backbone"):
        load_initial_parts(Pair(), {"rpn": path})
    model = Pair()
    model.mask_branch = nn.Linear(2, 2)
    with pytest.raises(ValueError, match="the checkpoint has no mask_branch, it has backbone, hea"):
        load_initial_parts(model, {"mask_branch": path})
    model.head = nn.Linear(3, 1)
    with pytest.raises(ValueError, match=r"init\.head: .*other\.pt holds another model"):
        load_initial_parts(model, {"head": path})
    with pytest.raises(FileNotFoundError, match="no checkpoint nowhere"):
        check_initial_weights(OmegaConf.create({}), {"head": None, "backbone": "nowhere.pt"})
    with pytest.raises(ValueError, match=r"freeze=\[head,rpn\]: Pair has no part rpn"):
        freeze_parts(model, ["head", "rpn"])
    with pytest.raises(ValueError, match="Sequential cannot freeze parts"):
        freeze_parts(model.backbone, ["0"])


def test_frozen_parts_keep_weights_and_statistics_in_training() -> None:
    model = Pair()
    freeze_parts(model, ["backbone"])
    before = {name: value.clone() for name, value in model.state_dict().items()}
    average = WeightAverage(model, 0.7)
    optimizer = torch.optim.SGD(
        [p for p in model.parameters() if p.requires_grad], lr=0.1, weight_decay=0.1
    )
    for step in range(1, 4):
        model.eval()  # as an evaluation between two steps
        model.train()
        model(torch.rand(4, 2)).sum().backward()
        optimizer.step()
        average.update(model, step)
    for state in (model.state_dict(), average.model.state_dict()):
        changed = [name for name, value in state.items() if not torch.equal(value, before[name])]
        assert changed == ["head.weight", "head.bias"]


def test_a_random_trunk_that_is_frozen_is_said_and_one_that_is_loaded_is_not(trained) -> None:
    model = OmegaConf.create({"backbone": {"weights": None, "norm": "frozen_bn", "freeze_at": 2}})
    assert check_initial_weights(model, {"backbone": str(trained)}, ["backbone"]) == []
    model.backbone.norm, model.backbone.freeze_at = "bn", 0
    assert check_initial_weights(model, {"backbone": None}, ["rpn"]) == []
    [warning] = check_initial_weights(model, {"backbone": None}, ["backbone"])
    assert "freeze=[backbone] keeps it so" in warning and "or set freeze=[]" in warning


def test_training_begins_and_keeps_what_the_settings_say(
    trained: Path, compose_tiny, tmp_path: Path
) -> None:
    """In training mode and with evaluations between; resuming does not begin again."""
    run_dir = tmp_path / "run"
    settings = (f"run_dir={run_dir}", "freeze=[backbone]", "logging.pictures=0")
    train(compose_tiny(*settings, f"init.backbone={trained}", "training.max_steps=2"))
    train(compose_tiny(*settings, "resume=auto", "evaluation.every=3", "training.max_steps=4"))
    former, now = load_checkpoint(trained)["model"], load_checkpoint(run_dir)["model"]
    same = {name.partition(".")[0] for name in now if torch.equal(now[name], former[name])}
    other = {name.partition(".")[0] for name in now if not torch.equal(now[name], former[name])}
    assert "backbone" in same and other == {"rpn", "box_branch", "mask_branch"}


def test_a_missing_checkpoint_of_a_part_names_its_key(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"init\.backbone: no checkpoint .*gone"):
        check_initial_weights(OmegaConf.create({}), {"backbone": str(tmp_path / "gone")})
