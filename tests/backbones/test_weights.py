"""Loading pretrained trunks, and the ways in which a file can be wrong."""

import logging
import os
from pathlib import Path

import pytest
import safetensors.torch
import torch
from torch import nn

from detector.backbones.resnet import ResNet
from detector.backbones.weights import (
    load_backbone_weights,
    load_part_weights,
    read_state_dict,
)


def make_backbone(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))


@pytest.fixture
def state() -> dict[str, torch.Tensor]:
    return make_backbone(1).state_dict()


@pytest.mark.parametrize("suffix", [".pth", ".pt", ".safetensors"])
def test_every_format_loads(suffix, state, tmp_path, caplog):
    path = tmp_path / f"weights{suffix}"
    state["fc.weight"] = torch.zeros(10, 4)  # the classifier is left behind
    if suffix == ".safetensors":
        safetensors.torch.save_file(state, path)
    else:
        torch.save(state, path)
    backbone = make_backbone()
    with caplog.at_level(logging.WARNING):
        load_backbone_weights(backbone, path)
    assert not caplog.records
    for name, value in backbone.state_dict().items():
        assert torch.equal(value, state[name])


def test_a_checkpoint_with_a_model_entry_loads(state, tmp_path):
    torch.save({"model": state, "step": 3}, tmp_path / "last.pt")
    assert read_state_dict(tmp_path / "last.pt").keys() == state.keys()


def test_missing_file_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"gone\.pth.*model\.backbone\.weights"):
        load_backbone_weights(make_backbone(), tmp_path / "gone.pth")


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
@pytest.mark.parametrize("damage", ["truncated", "text", "empty"])
def test_damaged_file_is_named(suffix, damage, state, tmp_path):
    path = tmp_path / f"weights{suffix}"
    if suffix == ".safetensors":
        safetensors.torch.save_file(state, path)
    else:
        torch.save(state, path)
    whole = path.read_bytes()
    contents = {"truncated": whole[: len(whole) // 2], "text": b"<html>404</html>", "empty": b""}
    path.write_bytes(contents[damage])
    with pytest.raises(ValueError, match=rf"weights\{suffix}: not a readable weights file"):
        load_backbone_weights(make_backbone(), path)


class Trap:
    """Runs a command where it is unpickled."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self):
        return os.system, (f"touch {self.marker}",)


def test_code_in_a_file_is_not_run(tmp_path):
    torch.save({"conv1.weight": Trap(tmp_path / "ran")}, tmp_path / "evil.pth")
    with pytest.raises(ValueError, match=r"evil\.pth"):
        load_backbone_weights(make_backbone(), tmp_path / "evil.pth")
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    "content", [[1, 2], {"epoch": 3}, {"model": [1, 2]}, {"model": torch.zeros(3)}, torch.zeros(3)]
)
def test_file_that_is_no_state_dict_is_named(content, tmp_path):
    torch.save(content, tmp_path / "other.pth")
    with pytest.raises(ValueError, match=r"other\.pth"):
        load_backbone_weights(make_backbone(), tmp_path / "other.pth")


def test_another_network_is_refused_with_what_differs(state, tmp_path):
    path = tmp_path / "weights.pth"
    torch.save(state | {"0.weight": torch.zeros(4, 3, 7, 7), "5.weight": torch.zeros(2)}, path)
    with pytest.raises(ValueError, match="does not fit") as error:
        load_backbone_weights(make_backbone(), path)
    message = str(error.value)
    assert "0.weight: (4, 3, 7, 7) in the file, (4, 3, 3, 3) in the model" in message
    assert "5.weight: not in the model" in message
    assert "model.backbone.name" in message
    torch.save({}, path)
    with pytest.raises(ValueError, match="no backbone parameters"):
        load_backbone_weights(make_backbone(), path)


def test_refusal_leaves_the_model_as_it_was(state, tmp_path):
    torch.save(state | {"5.weight": torch.zeros(2)}, tmp_path / "weights.pth")
    backbone = make_backbone()
    with pytest.raises(ValueError, match="does not fit"):
        load_backbone_weights(backbone, tmp_path / "weights.pth")
    for value, other in zip(backbone.parameters(), make_backbone().parameters(), strict=True):
        assert torch.equal(value, other)


def test_deeper_network_is_refused(tmp_path):
    torch.save(ResNet("resnet34").state_dict(), tmp_path / "resnet34.pth")
    with pytest.raises(ValueError, match=r"resnet34\.pth.*\n.*not in the model"):
        ResNet("resnet18", weights=str(tmp_path / "resnet34.pth"))


def test_missing_tensors_are_named_and_keep_their_values(state, tmp_path, caplog):
    del state["0.bias"]
    torch.save(state, tmp_path / "weights.pth")
    backbone = make_backbone()
    before = backbone[0].bias.clone()
    with caplog.at_level(logging.WARNING):
        load_backbone_weights(backbone, tmp_path / "weights.pth")
    assert "weights.pth lacks 1 of 6 tensors" in caplog.text
    assert "0.bias" in caplog.text
    assert torch.equal(backbone[0].bias, before)
    assert torch.equal(backbone[0].weight, state["0.weight"])


def test_shallower_network_of_the_same_blocks_is_told_by_a_warning(tmp_path, caplog):
    """ResNet-18 fits into ResNet-34 wherever it has something: only what lacks gives it away."""
    torch.save(ResNet("resnet18").state_dict(), tmp_path / "resnet18.pth")
    with caplog.at_level(logging.WARNING):
        ResNet("resnet34", weights=str(tmp_path / "resnet18.pth"))
    (record,) = caplog.records
    message = record.getMessage()
    assert "is model.backbone.name the network the file was made for?" in message
    assert "layer1.2.conv1.weight" in message
    assert len(message) < 1500


def test_what_a_backbone_has_no_use_for_is_ignored(state, tmp_path, caplog):
    state |= {"5.weight": torch.zeros(2), "6.weight": torch.zeros(2)}
    torch.save(state, tmp_path / "weights.pth")
    with pytest.raises(ValueError, match=r"6\.weight: not in the model"):
        load_backbone_weights(make_backbone(), tmp_path / "weights.pth", ignore=("5.",))
    backbone = make_backbone()
    with caplog.at_level(logging.WARNING):
        load_backbone_weights(backbone, tmp_path / "weights.pth", ignore=["5.", "6."])
    assert not caplog.records
    assert torch.equal(backbone[0].weight, state["0.weight"])
    with pytest.raises(ValueError, match="no backbone parameters"):
        load_backbone_weights(backbone, tmp_path / "weights.pth", ignore=("",))


def test_a_part_takes_what_is_its_own(tmp_path, caplog):
    head = nn.ModuleDict({"fc6": nn.Linear(4, 3)})
    state = {"classifier.0.weight": torch.ones(3, 4), "classifier.0.bias": torch.ones(3)}
    torch.save(state | {"features.0.weight": torch.ones(2)}, tmp_path / "whole.pth")
    with caplog.at_level(logging.WARNING):
        load_part_weights(head, tmp_path / "whole.pth", {"classifier.0.": "fc6."})
    assert not caplog.records
    assert all(parameter.eq(1).all() for parameter in head.parameters())
    with pytest.raises(ValueError, match=r"whole\.pth: has no layer4\.\*.*whole network"):
        load_part_weights(head, tmp_path / "whole.pth", {"layer4.": "layer4."})
    with pytest.raises(ValueError, match=r"fc7\.weight: not in the model"):
        load_part_weights(head, tmp_path / "whole.pth", {"classifier.0.": "fc7."})


def test_real_imagenet_weights_without_layer4(test_data, caplog):
    path = test_data / "weights" / "resnet18_imagenet_without_layer4.safetensors"
    with caplog.at_level(logging.WARNING):
        trunk = ResNet("resnet18", weights=str(path))
    file = {
        name: value
        for name, value in safetensors.torch.load_file(path).items()
        if not name.startswith("fc.") and not name.endswith("num_batches_tracked")
    }
    own = trunk.state_dict()
    assert all(torch.equal(own[name], value) for name, value in file.items())
    # Of layer4 the file has the shortcut only.
    lacking = [name for name in own if name not in file and "num_batches" not in name]
    assert lacking
    assert all(name.startswith("layer4.") for name in lacking)
    (record,) = caplog.records
    assert all(name in record.getMessage() for name in lacking)
    assert not trunk.conv1.weight.requires_grad
