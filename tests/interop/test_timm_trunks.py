"""Files of timm's networks begin a training, as its whole model's tensors."""

import json

import pytest
import torch

from detector.engine.assembly import build
from detector.interop.convert import load_any
from detector.interop.files import read_state
from detector.interop.recipes import compose_config
from detector.interop.timm_trunks import recognise

timm = pytest.importorskip("timm", reason="timm's backbones are an optional extra")


def test_a_file_that_names_its_network_becomes_a_trunk(tmp_path):
    torch.manual_seed(0)
    whole = timm.create_model("convnext_atto").eval()
    path = tmp_path / "convnext_atto.d2_in1k.pth"
    torch.save(whole.state_dict(), path)
    content = load_any(path)
    assert content["class_names"] == [] and content["source"].startswith("timm convnext_atto")
    recipe = recognise(read_state(path))
    config = compose_config(recipe)
    pixels = timm.get_pretrained_cfg("convnext_atto")
    assert [x / 255 for x in config.model.normalizer.mean] == pytest.approx(pixels.mean)
    config.num_classes = 1
    trunk = build(config.model).backbone.trunk
    prefix = "backbone.trunk."
    state = {name.removeprefix(prefix): value for name, value in content["model"].items()}
    trunk.load_state_dict(state, strict=True)
    image = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        last = trunk.eval()(image)[-1]
        torch.testing.assert_close(last, whole.stages(whole.stem(image)))


def test_the_settings_beside_the_file_name_the_network(tmp_path):
    state = timm.create_model("convnext_atto").state_dict()
    torch.save(state, tmp_path / "model.pth")
    with pytest.raises(ValueError, match="no model that is known here"):
        load_any(tmp_path / "model.pth")
    (tmp_path / "config.json").write_text(json.dumps({"architecture": "convnext_atto"}))
    assert load_any(tmp_path / "model.pth")["source"].startswith("timm convnext_atto")
    torch.save({**state, "neck.weight": torch.ones(1)}, tmp_path / "model.pth")
    with pytest.raises(ValueError, match=r"neck\.weight: no such name in timm convnext_atto"):
        load_any(tmp_path / "model.pth")
    (tmp_path / "config.json").write_text(json.dumps({"architecture": "convnext_femto"}))
    torch.save(state, tmp_path / "model.pth")
    with pytest.raises(ValueError, match=r"stem\.0\.weight .*\(40, 3, 4, 4\), expected \(48, 3"):
        load_any(tmp_path / "model.pth")
