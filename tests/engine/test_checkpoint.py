from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf
from torch import nn

from detector.engine.atomic_file import atomic_copy, atomic_write
from detector.engine.checkpoint import (
    best_metric,
    check_classes,
    check_newest,
    check_resumable,
    checkpoint_config,
    load_checkpoint,
    load_weights,
    save_checkpoint,
)

CONFIG = """
model: {_target_: torch.nn.Linear, backbone: {weights: imagenet.pth, name: resnet18}}
data: {root: data/a, val: {annotations: "${data.root}/val.json"}}
"""


def content(**changes: Any) -> dict[str, Any]:
    return {
        "format": 1,
        "model": nn.Linear(2, 1).state_dict(),
        "config": CONFIG,
        "class_names": ["cat", "dog"],
        "category_ids": [3, 90],
        "step": 5,
        **changes,
    }


def test_a_checkpoint_comes_back_under_weights_only(tmp_path: Path) -> None:
    saved = content()
    save_checkpoint(tmp_path / "run" / "checkpoints" / "last.pt", saved)
    found = load_checkpoint(tmp_path / "run")  # the run directory stands for its last.pt
    assert torch.equal(found["model"]["weight"], saved["model"]["weight"])
    assert {**found, "model": None} == {**saved, "model": None}


def test_a_failure_while_writing_leaves_the_former_file_and_no_other(tmp_path: Path) -> None:
    path = tmp_path / "last.pt"
    save_checkpoint(path, content(step=1))
    with pytest.raises(KeyboardInterrupt), atomic_write(path) as file:
        file.write(b"half of it")
        raise KeyboardInterrupt
    assert load_checkpoint(path)["step"] == 1
    assert list(tmp_path.iterdir()) == [path]


def test_a_copy_stays_when_its_source_is_replaced(tmp_path: Path) -> None:
    last, best = tmp_path / "last.pt", tmp_path / "best.pt"
    for step in (1, 2):
        save_checkpoint(last, content(step=step))
        atomic_copy(last, best)
        atomic_copy(last, best)  # already the same file
    save_checkpoint(last, content(step=3))
    assert load_checkpoint(best)["step"] == 2
    assert sorted(tmp_path.iterdir()) == [best, last]


def test_weights_that_are_not_finite_do_not_replace_good_ones(tmp_path: Path) -> None:
    path = tmp_path / "last.pt"
    save_checkpoint(path, content(step=1))
    bad = content(step=2)
    bad["model"]["weight"][0, 1] = float("nan")
    with pytest.raises(FloatingPointError, match=r"last\.pt was not written.*weight.*step 2"):
        save_checkpoint(path, bad)
    assert load_checkpoint(path)["step"] == 1


def test_a_missing_file_is_refused_with_the_ones_beside_it(tmp_path: Path) -> None:
    save_checkpoint(tmp_path / "best.pt", content())
    with pytest.raises(FileNotFoundError, match=r"no checkpoint .*last\.pt.*there are .*best\.pt"):
        load_checkpoint(tmp_path / "last.pt")


def test_the_folder_of_all_runs_is_refused_with_the_newest_ones(tmp_path: Path) -> None:
    for time in ("1st", "2nd", "3rd", "4th"):
        save_checkpoint(tmp_path / "mine" / time / "checkpoints" / "last.pt", content())
    for given in ("mine", "mine/checkpoints/last.pt"):
        with pytest.raises(FileNotFoundError, match=r"2nd/\S+, .*3rd/\S+, .*4th/") as error:
            load_checkpoint(tmp_path / given)
        assert "1st" not in str(error.value)


@pytest.mark.parametrize("kind", ["cut off", "text", "empty", "pickle of code"])
def test_a_broken_file_is_refused_with_a_remedy(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "last.pt"
    save_checkpoint(path, content())
    if kind == "pickle of code":
        torch.save({"model": Path("x")}, path)
    else:
        whole = path.read_bytes()
        path.write_bytes(
            {"cut off": whole[: len(whole) // 2], "text": b"hello", "empty": b""}[kind]
        )
    with pytest.raises(ValueError, match=r"last\.pt cannot be read as a checkpoint.*best\.pt"):
        load_checkpoint(path)


def test_other_files_of_torch_are_refused_by_what_they_lack(tmp_path: Path) -> None:
    path = tmp_path / "last.pt"
    for other in (nn.Linear(2, 1).state_dict(), torch.zeros(3)):
        torch.save(other, path)
        with pytest.raises(ValueError, match=r"last\.pt is not a checkpoint.*class_names"):
            load_checkpoint(path)
    torch.save(content(format=2), path)
    with pytest.raises(ValueError, match="format 2"):
        load_checkpoint(path)


def test_weights_alone_are_refused_for_resuming() -> None:
    full = content(optimizer={}, loader={}, evaluation=None, best=None)
    check_resumable("best.pt", full)
    del full["optimizer"], full["best"]
    with pytest.raises(ValueError, match=r"best\.pt has no optimizer, best: .*Give a last\.pt"):
        check_resumable("best.pt", full)


def test_a_later_checkpoint_is_not_overwritten(tmp_path: Path) -> None:
    last, best = tmp_path / "last.pt", tmp_path / "best.pt"
    former = content(step=4)
    check_newest(best, former, last)  # nothing there
    torch.save(content(step=4), last)
    check_newest(best, former, last)
    torch.save(content(step=6), last)
    with pytest.raises(ValueError, match=r"best\.pt is of step 4.*last\.pt of step 6"):
        check_newest(best, former, last)
    check_newest(last, former, last)


def test_the_config_keeps_interpolations_but_no_initial_weights() -> None:
    config = checkpoint_config(content())
    assert config.model.backbone.weights is None and config.model.backbone.name == "resnet18"
    config.data.root = "elsewhere"
    assert config.data.val.annotations == "elsewhere/val.json"


@pytest.mark.parametrize(
    "node",
    [
        {"_target_": "os.system", "command": "true"},
        {"_target_": "hydra.utils.get_class", "path": "subprocess.Popen"},
        {"_target_": "${name}"},
        {"_target_": "detector.data.index.os.system", "command": "true"},  # what a module imports
        {"_target_": "detector.engine.atomic_file.write_json", "path": "x", "content": ""},
        "${oc.create:'{_target_: os.system, command: \"true\"}'}",
    ],
)
def test_a_checkpoint_does_not_run_foreign_code_unless_allowed(node: dict[str, str] | str) -> None:
    text = OmegaConf.to_yaml({"model": {"parts": [{"deep": node}]}, "name": "os.system"})
    with pytest.raises(ValueError, match="allow_code"):
        checkpoint_config(content(config=text))
    checkpoint_config(content(config=text), allow_code=True)


def test_weights_of_another_model_are_refused_with_counts_and_names() -> None:
    state = nn.Linear(3, 1).state_dict() | {"extra": torch.zeros(1)}
    del state["bias"]
    with pytest.raises(ValueError) as error:
        load_weights(nn.Linear(2, 1), state, "last.pt")
    message = str(error.value)
    for part in ("last.pt", "1 missing (bias)", "1 unknown (extra)", "weight (1, 3) for (1, 2)"):
        assert part in message


def test_other_classes_are_refused_and_other_names_are_told(
    caplog: pytest.LogCaptureFixture,
) -> None:
    check_classes("last.pt", content(), ["cat", "dog"], "val.json")
    assert not caplog.text
    check_classes("last.pt", content(), ["Katze", "Hund"], "val.json")
    assert "last.pt calls its classes cat, dog, val.json calls them Katze, Hund" in caplog.text
    with pytest.raises(ValueError, match=r"last\.pt .* 2 classes .* val\.json has 1 \(cat\)"):
        check_classes("last.pt", content(), ["cat"], "val.json")
    with pytest.raises(ValueError, match="another order"):
        check_classes("last.pt", content(), ["dog", "cat"], "val.json")


def test_the_best_metric_is_that_of_masks_where_there_are_masks() -> None:
    assert best_metric(None, True, [1, 10, 100]) == ("mask", "AP")
    assert best_metric(None, False, [1, 10, 100]) == ("box", "AP")
    assert best_metric("box.AR10", True, [1, 10, 100]) == ("box", "AR10")
    for name in ("mask.AP", "box.AR20", "AP"):
        with pytest.raises(ValueError, match=rf"checkpoint\.metric={name}"):
            best_metric(name, False, [1, 10, 100])
