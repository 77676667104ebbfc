"""The recipes for real datasets, a few steps each."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from detector.commands.train import train
from detector.engine.checkpoint import load_checkpoint

SMALL_IMAGES = [
    "augment.train.0.shortest=96",
    "augment.train.0.longest=160",
    "augment.val.0.shortest=96",
    "augment.val.0.longest=160",
]


def first_images(annotations: Path, count: int, to: Path) -> Path:
    """A copy of a COCO file with its first images only."""
    file = json.loads(annotations.read_text())
    file["images"] = file["images"][:count]
    kept = {image["id"] for image in file["images"]}
    file["annotations"] = [a for a in file["annotations"] if a["image_id"] in kept]
    to.write_text(json.dumps(file))
    return to


def test_a_pretrained_trunk_is_fine_tuned_on_coco_with_its_sparse_ids(
    compose_tiny, test_data: Path, tmp_path: Path
) -> None:
    weights = test_data / "weights" / "resnet18_imagenet_without_layer4.safetensors"
    val = test_data / "coco_mini" / "annotations" / "instances_val2017.json"
    recipe = [
        "experiment=coco_mini",
        f"data.root={test_data / 'coco_mini'}",
        f"data.val.annotations={first_images(val, 20, tmp_path / 'val.json')}",
        f"model.backbone.weights={weights}",
        f"run_dir={tmp_path}",
        "evaluation.max_detections=[1,10,100]",
        *SMALL_IMAGES,
    ]
    train(compose_tiny(*recipe, "training.max_steps=2"))
    train(compose_tiny(*recipe, "training.max_steps=3", "resume=auto"))

    saved = load_checkpoint(tmp_path)
    assert saved["step"] == 3
    assert len(saved["class_names"]) == 80 and saved["category_ids"][-1] == 90
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    assert set(metrics["per_class"]) == set(saved["class_names"])

    # The stem and layer1 are frozen by the papers' recipe, layer2 learns.
    given, trained = load_file(weights), saved["trained_model"]
    for name, moves in (
        ("layer1.0.conv1.weight", False),
        ("layer2.0.conv1.weight", True),
    ):
        [found] = [value for key, value in trained.items() if key.endswith(name)]
        assert torch.equal(found, given[name]) != moves


@pytest.mark.parametrize(
    ("name", "val"),
    [("nuclei_cpu", "nuclei/annotations/val.json"), ("fruits_nuts", "fruits_nuts/trainval.json")],
)
def test_a_recipe_starts_on_its_dataset(
    compose_tiny, test_data: Path, tmp_path: Path, name: str, val: str
) -> None:
    images = SMALL_IMAGES if name == "fruits_nuts" else []
    config = compose_tiny(
        f"experiment={name}",
        f"data.root={test_data / val.split('/')[0]}",
        f"data.val.annotations={first_images(test_data / val, 6, tmp_path / 'val.json')}",
        f"run_dir={tmp_path}",
        "training.max_steps=1",
        *images,
    )
    metrics = train(config)
    assert set(metrics) == {"box", "mask", "box_errors", "mask_errors", "per_class"}
    assert load_checkpoint(tmp_path)["class_names"] == list(metrics["per_class"])
