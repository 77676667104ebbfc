"""Learning rate and schedule for other batches, against the rule written out."""

import pytest
from omegaconf import OmegaConf

from detector.engine import assembly
from detector.engine.batch_scaling import scale_to_batch
from tests.engine.toy_training import toy_config


def config(*overrides: str):
    multistep = ("schedule=multistep", "training.max_steps=90000", "evaluation.every=5000")
    return toy_config("data", "run", *multistep, "optimizer.lr=0.02", *overrides)


def test_the_1x_recipe_on_other_batches() -> None:
    """Published for 16 images: rate 0.02, steps 60 000, 80 000 and 90 000, warm-up 1000."""
    for images, accumulate in ((16, 1), (2, 1), (8, 4), (64, 1), (12, 1)):
        cfg = config(
            f"data.batch_size={images}",
            f"training.accumulate={accumulate}",
            "optimizer.reference_batch_size=16",
            "schedule.warmup_steps=1000",
        )
        said = scale_to_batch(cfg)
        factor = images * accumulate / 16
        assert cfg.optimizer.lr == pytest.approx(0.02 * factor)
        assert cfg.schedule.milestones == [round(60000 / factor), round(80000 / factor)]
        assert cfg.schedule.warmup_steps == round(1000 / factor)
        assert cfg.training.max_steps == round(90000 / factor)
        assert cfg.evaluation.every == round(5000 / factor)
        assert cfg.optimizer.reference_batch_size == images * accumulate
        assert (said is None) == (factor == 1)
        # The same rate, per image, after the same number of images: 70 000 * 16 are past a drop.
        schedule = assembly.build(cfg.schedule)
        assert schedule(round(70000 / factor)) == pytest.approx(0.1)
        assert schedule(round(500 / factor)) == pytest.approx(0.5005, abs=1e-3)
        # What a run directory's config.yaml says is scaled no more.
        assert scale_to_batch(cfg) is None


def test_what_is_printed_and_what_follows_other_settings() -> None:
    cfg = config("schedule=cosine", "data.batch_size=4", "optimizer.reference_batch_size=16")
    cfg.schedule.warmup_steps = 1
    said = scale_to_batch(cfg)
    assert "from 16 images in a step to 4: optimizer.lr 0.02 -> 0.005" in said
    assert "training.max_steps 90000 -> 360000" in said and "total_steps" not in said
    assert cfg.schedule.total_steps == 360000
    assert cfg.schedule.warmup_steps == 4


def test_as_given_without_a_reference() -> None:
    cfg = config("data.batch_size=4")
    former = OmegaConf.to_yaml(cfg)
    assert scale_to_batch(cfg) is None and OmegaConf.to_yaml(cfg) == former


@pytest.mark.parametrize("reference", ["0", "-16", "1.5", "many"])
def test_a_reference_that_is_no_number_of_images_is_refused(reference: str) -> None:
    with pytest.raises(ValueError, match=r"optimizer\.reference_batch_size"):
        scale_to_batch(config(f"optimizer.reference_batch_size={reference}"))
