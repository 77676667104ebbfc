"""Every recipe as a model that trains: one step and one inference, small and seeded.

What makes a recipe is its arrangement of parts, so the trunks are ResNet-18's and everything is
narrow; recipes whose models are then the same are tried once. True sizes are compared in
test_describe.py.
"""

import pytest
import torch
from hydra.utils import instantiate
from omegaconf import OmegaConf

from tests.engine.small_recipes import make_inputs, shrink
from tests.engine.test_configs import EXPERIMENTS

# Rows of sweeps that are not what the recipe is without a choice.
ROWS = {
    "softmax": ("experiment=ablation/table2b", "model.mask_branch.head.masks=softmax"),
    "mlp2": ("experiment=ablation/table2e", "experiment/ablation/row@_global_=mlp2"),
    "mlp3": ("experiment=ablation/table2e", "experiment/ablation/row@_global_=mlp3"),
}


@pytest.fixture(scope="module")
def recipes(compose_recipe, compose_tool):
    """A configuration for each different model, by the name of the first recipe that has it."""
    distinct = {}
    composed = {name: compose_recipe(name) for name in EXPERIMENTS}
    composed |= {name: compose_tool("train", *words) for name, words in ROWS.items()}
    for name, cfg in composed.items():
        cfg = shrink(cfg)
        distinct.setdefault(OmegaConf.to_yaml(cfg.model, resolve=True), (name, cfg))
    return dict(distinct.values())


def step(cfg, model, optimizer, precision) -> dict[str, torch.Tensor]:
    images, sizes, targets, proposals = make_inputs(model)
    torch.manual_seed(1)
    with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
        losses = model(images, sizes, targets, *proposals)
    sum(losses.values()).backward()
    optimizer.step()
    return losses


def check_step(name, cfg, precision):
    torch.manual_seed(0)
    model = instantiate(cfg.model, _convert_="all").train()
    before = {key: value.clone() for key, value in model.named_parameters()}
    # Only what a step does to which parameters matters here, not how far.
    cfg.optimizer.lr = 1e-6
    optimizer = instantiate(cfg.optimizer)(model)
    losses = step(cfg, model, optimizer, precision)
    assert losses and all(loss.isfinite() and loss >= 0 for loss in losses.values()), losses

    frozen = []
    for key, parameter in model.named_parameters():
        if parameter.requires_grad:
            assert parameter.grad is not None and parameter.grad.isfinite().all(), (name, key)
        else:
            frozen.append(key)
            assert parameter.grad is None and torch.equal(parameter, before[key]), (name, key)
    trained = {key: p for key, p in model.named_parameters() if p.requires_grad}
    still = [key for key, p in trained.items() if not p.grad.any()]
    assert not still, f"{name}: no gradient reaches {still[:5]}"
    assert bool(frozen) == bool(cfg.model.backbone.freeze_at), f"{name}: {frozen[:3]}"
    assert all("backbone" in key or "trunk" in key for key in frozen)

    images, sizes, _, proposals = make_inputs(model)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
        found = model.eval().detect(images, sizes, *proposals)
    count = found.valid.sum()
    assert count > 0, f"{name} finds nothing"
    boxes = found.boxes[found.valid]
    assert boxes.isfinite().all() and boxes.dtype == torch.float32
    assert (boxes >= 0).all() and (boxes <= 128).all() and (boxes[:, 2:] > boxes[:, :2]).all()
    assert found.labels.max() < model.num_classes
    assert (found.masks is not None) == model.has_masks
    assert (found.keypoints is not None) == model.has_keypoints


@pytest.mark.parametrize("precision", ["float32", "bf16"])
def test_every_recipe_takes_a_step_and_detects(recipes, precision):
    assert len(recipes) > 20 and recipes.keys() >= ROWS.keys()
    for name, cfg in recipes.items():
        check_step(name, cfg.copy(), precision)
