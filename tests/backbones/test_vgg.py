"""VGG16's convolutions against torchvision's."""

import pytest
import torch
import torchvision
from torch import nn
from torchvision.models.vgg import cfgs, make_layers

from detector.backbones.vgg import VGG16
from detector.roi_heads.vgg import VGGHead


@pytest.fixture(scope="module")
def reference() -> nn.Sequential:
    """torchvision's features, without the 124 million parameters of the classifier."""
    torch.manual_seed(0)
    return make_layers(cfgs["D"])


def whole_state(reference: nn.Sequential) -> dict[str, torch.Tensor]:
    state = {f"features.{name}": value for name, value in reference.state_dict().items()}
    return state | {"classifier.0.weight": torch.zeros(2, 2), "classifier.6.bias": torch.zeros(2)}


def test_conv5_3_equals_torchvisions_with_its_file(reference, tmp_path):
    torch.save(whole_state(reference), tmp_path / "vgg16.pth")
    trunk = VGG16(str(tmp_path / "vgg16.pth"))
    image = torch.randn(1, 3, 61, 93, generator=torch.Generator().manual_seed(1))
    (feature,) = trunk(image)
    assert isinstance(reference[-1], nn.MaxPool2d)
    assert torch.equal(feature, reference[:-1](image))
    assert feature.shape == (1, *trunk.out_channels, 61 // 16, 93 // 16)
    assert trunk.strides == (16,)


def test_parameters_are_as_many_as_published():
    """Table 2 of the paper has 138 million; torchvision's file 138 357 544."""
    with torch.device("meta"):
        parts = [VGG16(), VGGHead(), nn.Linear(4096, 1000)]
        names = torchvision.models.vgg16().features.state_dict().keys()
    assert sum(p.numel() for part in parts for p in part.parameters()) == 138_357_544
    assert parts[0].features.state_dict().keys() == names


@pytest.mark.parametrize("freeze_at", range(6))
def test_freezing_goes_by_blocks(freeze_at):
    with torch.device("meta"):
        trunk = VGG16(freeze_at=freeze_at)
    convs = [module for module in trunk.features if isinstance(module, nn.Conv2d)]
    trainable = [conv.weight.requires_grad for conv in convs]
    assert trainable == [conv.bias.requires_grad for conv in convs]
    frozen = sum((2, 2, 3, 3, 3)[:freeze_at])
    assert trainable == [False] * frozen + [True] * (13 - frozen)


def test_only_what_is_not_frozen_gets_gradients():
    """conv3_1 and up, as the papers tune it."""
    trunk = VGG16()
    trunk(torch.ones(1, 3, 32, 32))[0].square().sum().backward()
    for name, parameter in trunk.named_parameters():
        assert (parameter.grad is not None) == (int(name.split(".")[1]) >= 10), name


def test_impossible_settings_are_refused():
    with torch.device("meta"), pytest.raises(ValueError, match=r"freeze_at=6 must be 0 .* to 5"):
        VGG16(freeze_at=6)


def test_files_with_caffes_names_of_the_head_load(reference, tmp_path):
    """fc6 to fc8 are the head's, as classifier.* is in torchvision's file."""
    state = {f"features.{name}": value for name, value in reference.state_dict().items()}
    head = {
        f"fc{number}.{kind}": torch.zeros(2) for number in (6, 7, 8) for kind in ("weight", "bias")
    }
    torch.save(state | head, tmp_path / "vgg16.pth")
    trunk = VGG16(str(tmp_path / "vgg16.pth"))
    assert torch.equal(trunk.features[0].weight, reference[0].weight)
