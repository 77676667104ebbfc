from pathlib import Path

import pytest
import torch

from detector.commands.train import train
from detector.data.loader import build_eval_loader, build_train_loader
from detector.engine import assembly
from detector.engine.checkpoint import load_checkpoint
from detector.engine.precise_bn import check_precise_bn, recompute_batch_statistics, tracked_norms
from detector.engine.randomness import seed_everything
from detector.engine.validation_loss import ValidationLoss
from tests.engine.toy_training import toy_config


@pytest.fixture
def parts(shapes_root: Path, tmp_path: Path):
    # All candidates are sampled, so that the losses are functions of weights and data.
    cfg = toy_config(
        shapes_root, tmp_path, "model.rpn.num_samples=400", "model.roi_sampler.num_samples=60"
    )
    cfg.num_classes = 5
    seed_everything(0)
    model = assembly.build(cfg.model).train()
    return model, assembly.build(cfg.runtime), cfg


def test_it_is_the_mean_over_images_in_evaluation_mode(parts) -> None:
    model, runtime, cfg = parts
    data = assembly.build_dataset(cfg.data, "val")
    former = {name: value.clone() for name, value in model.state_dict().items()}
    losses = ValidationLoss(runtime, seed=0)
    batches = list(build_eval_loader(data, batch_size=3))
    assert [len(batch.images) for batch in batches] == [3, 1]
    for batch in batches:
        losses.update(model, batch)
    found = losses.result()
    assert model.training
    assert all(torch.equal(value, former[name]) for name, value in model.state_dict().items())

    model.eval()
    expected = []
    for batch in batches:
        own = model(batch.images, batch.image_sizes, batch.targets)
        expected.append({name: float(loss.detach()) for name, loss in own.items()})
    assert set(found) == {"loss", *expected[0]}
    for name in expected[0]:
        mean = (3 * expected[0][name] + 1 * expected[1][name]) / 4
        assert found[name] == pytest.approx(mean, rel=1e-5)
    assert found["loss"] == pytest.approx(sum(found[name] for name in expected[0]), rel=1e-6)
    losses.reset()
    losses.update(model, batches[1])
    assert losses.result()["loss_box"] == pytest.approx(expected[1]["loss_box"], rel=1e-5)


def test_precise_statistics_are_those_of_all_the_batches_together(parts) -> None:
    model, runtime, cfg = parts
    batches = list(build_eval_loader(assembly.build_dataset(cfg.data, "val"), batch_size=2))
    conv, norm = model.backbone.layers[0], model.backbone.layers[1]
    norm.running_mean.fill_(5.0)
    norm.num_batches_tracked.fill_(9)
    recompute_batch_statistics(model, batches, runtime, seed=0)
    with torch.no_grad():
        features = [conv(model.normalizer(b.images, b.image_sizes)).double() for b in batches]
    everything = torch.cat(features).transpose(0, 1).flatten(1)
    torch.testing.assert_close(norm.running_mean.double(), everything.mean(1), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(norm.running_var.double(), everything.var(1), rtol=1e-3, atol=1e-4)
    assert norm.momentum == 0.1 and norm.num_batches_tracked == 9 and model.training


def test_frozen_norms_keep_theirs_and_a_setting_without_effect_is_told(parts) -> None:
    model, runtime, cfg = parts
    assert len(tracked_norms(model)) == 2 and check_precise_bn(3, model) == []
    model.freeze_modules([model.backbone])
    model.backbone.layers[1].running_mean.fill_(5.0)
    batches = build_eval_loader(assembly.build_dataset(cfg.data, "val"), batch_size=2)
    recompute_batch_statistics(model, batches, runtime, seed=0)
    assert (model.backbone.layers[1].running_mean == 5.0).all()
    [sentence] = check_precise_bn(3, model)
    assert "precise_bn_steps=3 has no effect" in sentence
    with pytest.raises(ValueError, match="precise_bn_steps=-1"):
        check_precise_bn(-1, model)


def test_neither_changes_the_training(shapes_root: Path, tmp_path: Path) -> None:
    """Nor does looking at batches ahead move the loader."""
    plain, watched = tmp_path / "plain", tmp_path / "watched"
    train(toy_config(shapes_root, plain))
    more = ("evaluation.loss=true", "training.precise_bn_steps=3", "evaluation.every=2")
    metrics = train(toy_config(shapes_root, watched, *more))
    assert metrics["val"]["loss"] > 0
    a, b = load_checkpoint(plain), load_checkpoint(watched)
    for name, value in a["model"].items():
        if not name.endswith(("running_mean", "running_var")):
            assert torch.equal(value, b["model"][name]), name
    assert a["loader"] == b["loader"]


def test_batches_at_a_position_are_those_that_will_come(shapes_root: Path, tmp_path: Path) -> None:
    data = assembly.build_dataset(toy_config(shapes_root, tmp_path).data, "train")
    loader = build_train_loader(data, batch_size=5, with_masks=False)  # three batches an epoch
    coming = iter(loader)
    next(coming), next(coming)
    ahead = [batch.image_ids.tolist() for batch in loader.batches_at(loader.position, 3)]
    assert loader.position == (0, 2)
    assert [next(coming).image_ids.tolist() for _ in range(3)] == ahead
