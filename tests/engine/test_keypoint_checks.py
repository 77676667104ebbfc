"""Which keypoints of which data a model is trained with."""

from types import SimpleNamespace

import numpy as np
import pytest

from detector.commands.train import train
from detector.data.index import AnnotationIndex
from detector.engine.assembly import check_keypoints


def dataset(file: str, names: list[str]) -> SimpleNamespace:
    """A dataset of no images whose objects have keypoints of these names."""
    columns = {
        name: np.zeros(0, np.int64)
        for name in ("image_ids", "widths", "heights", "file_name_bytes", "labels", "crowd")
    }
    offsets = {
        f"{name}_offsets": np.zeros(1, np.int64)
        for name in ("file_name", "annotation", "ring", "vertex")
    }
    index = AnnotationIndex(
        **columns,
        **offsets,
        annotation_ids=np.zeros(0, np.int64),
        boxes=np.zeros((0, 4), np.float32),
        vertices=np.zeros((0, 2), np.float32),
        category_ids=np.array([1]),
        category_names=["person"],
        source_file=file,
        image_root="images",
        keypoints=np.zeros((0, len(names), 3), np.float32),
        keypoint_names=names,
        keypoint_flip=list(range(len(names))),
    )
    return SimpleNamespace(index=index)


MODEL = SimpleNamespace(has_keypoints=True, num_keypoints=2)
TRAIN = dataset("train.json", ["nose", "tail"])


@pytest.mark.parametrize(
    ("model", "train_set", "val_set", "said"),
    [
        (
            SimpleNamespace(has_keypoints=True, num_keypoints=17),
            TRAIN,
            TRAIN,
            r"finds 17 keypoints, but train\.json has 2; leave num_keypoints out",
        ),
        (
            MODEL,
            TRAIN,
            dataset("b.json", ["nose", "ear"]),
            r"train\.json and b\.json .* \['ear', 'tail'\]",
        ),
        (MODEL, TRAIN, dataset("b.json", ["tail", "nose"]), "differ in their order"),
    ],
)
def test_data_that_a_keypoint_branch_cannot_learn_from(model, train_set, val_set, said):
    with pytest.raises(ValueError, match=said):
        check_keypoints(model, train_set, val_set)


def test_data_that_fits():
    check_keypoints(MODEL, TRAIN, TRAIN)
    check_keypoints(MODEL, TRAIN, dataset("boxes.json", []))  # boxes alone are evaluated
    no_branch = SimpleNamespace(has_keypoints=False)
    check_keypoints(no_branch, dataset("a.json", []), TRAIN)
    check_keypoints(no_branch, TRAIN, dataset("b.json", ["nose", "ear"]))


def test_data_without_keypoints_is_refused_before_a_model_is_built(compose_tiny, tmp_path):
    config = compose_tiny("model=mask_keypoint_rcnn_fpn", f"run_dir={tmp_path}")
    with pytest.raises(ValueError, match=r"instances_train\.json: .*no keypoints.*person_keypoint"):
        train(config)
