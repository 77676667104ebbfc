"""The fully connected layers of VGG16 against torchvision's classifier."""

import logging

import pytest
import torch
import torchvision
from torch import nn

from detector.roi_heads.vgg import VGGHead


def make_classifier() -> nn.Sequential:
    """The layers of torchvision's classifier up to fc7, narrower."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Linear(6 * 7 * 7, 12),
        nn.ReLU(),
        nn.Dropout(),
        nn.Linear(12, 12),
        nn.ReLU(),
        nn.Dropout(),
    )


def test_equals_torchvisions_classifier_with_its_file(tmp_path, caplog):
    classifier = make_classifier().eval()
    state = {f"classifier.{name}": value for name, value in classifier.state_dict().items()}
    state |= {"features.0.weight": torch.zeros(2), "classifier.6.weight": torch.zeros(2)}
    torch.save(state, tmp_path / "vgg16.pth")
    with caplog.at_level(logging.WARNING):
        head = VGGHead(6, 7, 12, weights=str(tmp_path / "vgg16.pth")).eval()
    assert not caplog.records
    pooled = torch.randn(5, 6, 7, 7)
    assert torch.equal(head(pooled), classifier(pooled.flatten(1)))
    assert head.out_channels == 12


def test_layers_are_those_of_the_published_network():
    with torch.device("meta"):
        classifier = torchvision.models.vgg16().classifier
        head = VGGHead()
    assert [type(layer) for layer in classifier[:6]] == [type(layer) for layer in make_classifier()]
    assert head.fc6.weight.shape == classifier[0].weight.shape
    assert head.fc7.weight.shape == classifier[3].weight.shape
    assert head.dropout == classifier[2].p == classifier[5].p


def test_caffes_names_load_too(tmp_path):
    """As of a converted ZF model, pooled to 6x6."""
    weights = VGGHead(2, 6, 5).state_dict()
    torch.save(weights | {"conv1.weight": torch.zeros(2)}, tmp_path / "zf.pth")
    head = VGGHead(2, 6, 5, weights=str(tmp_path / "zf.pth"))
    assert all(torch.equal(value, weights[name]) for name, value in head.state_dict().items())


def test_dropout_halves_both_layers_in_training_only():
    head = VGGHead(1, 2, 2000)
    nn.init.zeros_(head.fc7.weight)
    nn.init.ones_(head.fc7.bias)
    pooled = torch.ones(10, 1, 2, 2)
    torch.manual_seed(0)
    outputs = head.train()(pooled)
    assert set(outputs.unique().tolist()) == {0.0, 2.0}
    # Of 20 000 draws; their spread is 0.0035.
    assert outputs.eq(0).float().mean().item() == pytest.approx(0.5, abs=0.02)
    assert head.eval()(pooled).eq(1).all()
    # fc6's outputs: passed on by an identity, dropped twice.
    nn.init.ones_(head.fc6.bias)
    nn.init.zeros_(head.fc6.weight)
    nn.init.eye_(head.fc7.weight)
    nn.init.zeros_(head.fc7.bias)
    assert head.train()(pooled).eq(0).float().mean().item() == pytest.approx(0.75, abs=0.02)
    assert head.eval()(pooled).eq(1).all()


def test_what_does_not_fit_is_refused(tmp_path):
    torch.save({"layer1.0.weight": torch.zeros(2)}, tmp_path / "resnet.pth")
    with pytest.raises(ValueError, match=r"resnet\.pth: has no classifier\.0\.\*"):
        VGGHead(2, 2, 4, weights=str(tmp_path / "resnet.pth"))
    torch.save({"classifier.0.weight": torch.zeros(4, 9)}, tmp_path / "other.pth")
    with pytest.raises(ValueError, match=r"fc6\.weight: \(4, 9\) in the file, \(4, 8\)"):
        VGGHead(2, 2, 4, weights=str(tmp_path / "other.pth"))
    with pytest.raises(ValueError, match=r"dropout=1"):
        VGGHead(2, 2, 4, dropout=1.0)
