"""A value that is not finite is caught, kept, taken again and named."""

from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf
from torch import Tensor, nn

from detector.commands.replay import load_replay, replay
from detector.commands.train import train
from detector.engine import training_step
from detector.engine.checkpoint import load_checkpoint
from detector.engine.first_nonfinite import FirstNonFinite
from detector.engine.loss_window import NonFiniteLoss
from detector.roi_heads.box import TwoFCHead
from tests.engine.toy_training import ToyBackbone, toy_config


class BadGradient(torch.autograd.Function):
    """The identity, whose gradient is NaN for the first of the batch."""

    @staticmethod
    def forward(ctx, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx, gradient: Tensor) -> Tensor:
        gradient = gradient.clone()
        gradient[0] = float("nan")
        return gradient


def settings(file: Path, **more):
    return OmegaConf.create({"file": str(file), "runtime": None, "allow_code": True, **more})


@pytest.mark.parametrize("accumulate", [1, 2])
def test_a_nan_in_one_gradient_is_caught_replayed_and_named(
    accumulate: int, shapes_root: Path, tmp_path: Path, monkeypatch, capsys
) -> None:
    """The backbone's second convolution gives it in the last batch of the fourth step."""
    forward, key = nn.Conv2d.forward, (0, 3, 1)[: accumulate + 1]

    def poisoned(self: nn.Conv2d, x: Tensor) -> Tensor:
        is_second = self.kernel_size == (4, 4) and self.in_channels == 8
        return forward(self, BadGradient.apply(x) if is_second and seeded[-1] == key else x)

    seeded: list[tuple[int, ...]] = []
    seed_everything = training_step.seed_everything
    monkeypatch.setattr(
        training_step, "seed_everything", lambda *key: (seeded.append(key), seed_everything(*key))
    )
    monkeypatch.setattr(nn.Conv2d, "forward", poisoned)
    overrides = (f"training.accumulate={accumulate}", "checkpoint.every=2", "logging.every=100")
    with pytest.raises(NonFiniteLoss, match=r"step 4: .*gradient_norm nan.*tools/replay\.py file="):
        train(toy_config(shapes_root, tmp_path, *overrides))
    assert load_checkpoint(tmp_path)["step"] == 2

    content = load_replay(tmp_path / "replay.pt")
    assert content["step"] == 3 and len(content["batches"]) == accumulate
    found = replay(settings(tmp_path))
    assert found["bit_equal"]
    assert found["module"] == "backbone.layers.3"
    assert "its input a gradient that is not finite" in found["found"]
    said = capsys.readouterr().out
    assert said.count("the same bits") == 6 and "gradient_norm            nan" in said


def test_the_weights_kept_are_those_before_the_step(
    shapes_root: Path, tmp_path: Path, monkeypatch
) -> None:
    """A training that is stopped after step 2 has the weights that a bad step 3 begins with."""
    good = tmp_path / "good"
    train(toy_config(shapes_root, good, "training.max_steps=2", "schedule.total_steps=6"))
    calls = []
    forward = TwoFCHead.forward

    def infinite(self, pooled: Tensor) -> Tensor:
        calls.append(None)
        found = forward(self, pooled)
        return found * float("inf") if len(calls) == 3 else found

    with monkeypatch.context() as patch, pytest.raises(NonFiniteLoss, match="step 3"):
        patch.setattr(TwoFCHead, "forward", infinite)
        train(toy_config(shapes_root, tmp_path / "bad"))
    expected = load_checkpoint(good)["model"]
    kept = load_replay(tmp_path / "bad" / "replay.pt")["model"]
    assert all(torch.equal(kept[name], value) for name, value in expected.items())
    # What made it bad is not there any more: a replay says so rather than naming a module.
    found = replay(settings(tmp_path / "bad"))
    assert found["module"] is None and not found["bit_equal"]
    with monkeypatch.context() as patch:
        patch.setattr(TwoFCHead, "forward", lambda *a: forward(*a) * float("inf"))
        assert replay(settings(tmp_path / "bad"))["module"] == "box_branch.head"


def test_steps_may_be_skipped_and_are_counted(
    shapes_root: Path, tmp_path: Path, monkeypatch, capsys
) -> None:
    forward, calls = ToyBackbone.forward, []

    def infinite(self, images: Tensor) -> list[Tensor]:
        calls.append(None)
        [found] = forward(self, images)
        return [found * float("nan")] if len(calls) in (2, 4) else [found]

    monkeypatch.setattr(ToyBackbone, "forward", infinite)
    overrides = ("training.on_nonfinite=skip", "logging.every=3")
    train(toy_config(shapes_root, tmp_path, *overrides, "training.ema_decay=0.9"))
    saved = load_checkpoint(tmp_path)
    assert saved["step"] == 6
    assert all(value.isfinite().all() for value in saved["model"].values())
    assert capsys.readouterr().out.count("skipped 1") == 2


class Halves(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(2, 2)
        self.act = nn.ReLU(inplace=True)
        self.left = nn.Linear(2, 1)
        self.right = nn.Linear(2, 1)

    def forward(self, x: Tensor) -> Tensor:
        shared = self.act(self.first(x))
        return self.left(shared) + BadGradient.apply(self.right(shared))


def test_of_two_users_of_a_tensor_the_one_with_the_bad_gradient_is_named() -> None:
    torch.manual_seed(0)
    model = Halves()
    with FirstNonFinite(model) as watch:
        model(torch.rand(3, 2)).sum().backward()
    assert watch.module == "right"
    assert "what follows it has made it" in watch.found
    clean = nn.Sequential(nn.Linear(2, 2), nn.ReLU(inplace=True))
    with FirstNonFinite(clean) as watch:
        clean(torch.rand(3, 2)).sum().backward()
    assert watch.found is None
    assert not clean[0]._forward_hooks and not clean[0]._forward_pre_hooks


def test_losses_that_no_module_gives_are_named() -> None:
    with FirstNonFinite(nn.Linear(1, 1)) as watch:
        watch.losses({"loss_box": torch.tensor(1.0), "loss_mask": torch.tensor(float("inf"))})
    assert watch.module == "loss_mask"


def test_other_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no file .*replay\.pt"):
        load_replay(tmp_path)
    (tmp_path / "replay.pt").write_bytes(b"text")
    with pytest.raises(ValueError, match="cannot be read"):
        load_replay(tmp_path)
    torch.save({"model": {}}, tmp_path / "replay.pt")
    with pytest.raises(ValueError, match="no replay file"):
        load_replay(tmp_path)
