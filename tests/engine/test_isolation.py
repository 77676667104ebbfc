"""Recipes in one process know nothing of each other."""

import hashlib
import json
import random
import subprocess
import sys
from pathlib import Path

import hydra
import numpy as np
import pytest
import torch
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.utils import instantiate
from omegaconf import OmegaConf
from omegaconf.basecontainer import BaseContainer

from tests.engine.small_recipes import make_inputs, shrink
from tests.small_trainings import compose_config

MUTABLE = (list, dict, set, bytearray, np.ndarray, torch.Tensor)
SECOND = "mask_rcnn_r50_fpn_1x"


def digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def load(name: str) -> tuple[torch.nn.Module, dict]:
    """A recipe composed, built and stepped, and what came of it."""
    cfg = compose_config("train", ["runtime.device=cpu", f"experiment={name}"])
    composed = OmegaConf.to_yaml(cfg)
    torch.manual_seed(3)
    model = instantiate(shrink(cfg).model, _convert_="all").train()
    state = b"".join(value.numpy().tobytes() for value in model.state_dict().values())
    images, sizes, targets, proposals = make_inputs(model)
    losses = model(images, sizes, targets, *proposals)
    sum(losses.values()).backward()
    norms = [p.grad.norm().item() for p in model.parameters() if p.grad is not None]
    made = {
        "config": composed,
        "initial weights": digest(state),
        "losses": {key: value.item() for key, value in losses.items()},
        "gradient": sum(norms),
        "random numbers drawn": digest(torch.get_rng_state().numpy().tobytes()),
    }
    return model, made


def global_state() -> dict[str, str]:
    """What a recipe could leave behind, but for torch's random numbers, which weights are."""
    state = {
        "dtype": repr(torch.get_default_dtype()),
        "device": repr(torch.get_default_device()),
        "gradients": repr(torch.is_grad_enabled()),
        "deterministic": repr(torch.are_deterministic_algorithms_enabled()),
        "matmul": torch.get_float32_matmul_precision(),
        "threads": repr(torch.get_num_threads()),
        "autocast": repr(torch.is_autocast_enabled("cpu")),
        "python's random numbers": digest(repr(random.getstate()).encode()),
        "numpy's": digest(repr(np.random.get_state()).encode()),
        "hydra": repr(GlobalHydra.instance().is_initialized()),
        "hydra's store": repr(sorted(ConfigStore.instance().repo)),
        "resolvers": repr(sorted(BaseContainer._resolvers)),
    }
    for name, module in sorted(sys.modules.items()):
        if name == "detector" or name.startswith("detector."):
            for key, value in vars(module).items():
                if isinstance(value, MUTABLE) and not key.startswith("__"):
                    state[f"{name}.{key}"] = repr(value)
    return state


@pytest.fixture(scope="module")
def alone() -> dict:
    """What comes of the second recipe in a process of its own."""
    root = Path(__file__).parents[2]
    code = (
        "import json, torch\n"
        "torch.set_num_threads(1)\n"
        "from tests.engine.test_isolation import SECOND, load\n"
        "print(json.dumps(load(SECOND)[1]))"
    )
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


@pytest.fixture(scope="module")
def warm() -> None:
    """Whatever is imported or filled on first use."""
    load(SECOND)


@pytest.mark.parametrize(
    "first",
    [
        "faster_rcnn_zf_voc07",  # other data, RoI op, anchors and optimiser
        "torchvision_keypoint_rcnn_r50_fpn",
        "mask_rcnn_r50_fpn_lsj_100ep",  # batch norm
        "ablation/table2c",  # settings of Hydra's own
    ],
)
def test_a_recipe_after_another_is_what_it_is_alone(first, alone, warm):
    before = global_state()
    former, made = load(first)
    assert made["config"] != alone["config"] and made["losses"] != alone["losses"]
    model, made = load(SECOND)
    assert made == alone
    after = global_state()
    # Modules that were imported meanwhile are no trace of a recipe.
    assert {key: after[key] for key in before} == before
    storages = [
        {t.untyped_storage().data_ptr() for t in (*one.parameters(), *one.buffers()) if t.numel()}
        for one in (former, model)
    ]
    assert not storages[0] & storages[1], "tensors are shared"


def test_what_is_done_to_one_configuration_does_not_reach_the_next():
    first = compose_config("train", [f"experiment={SECOND}"])
    text = OmegaConf.to_yaml(first)
    first.model.rpn.anchors.sizes[0][0] = 99
    first.augment.train.clear()
    assert OmegaConf.to_yaml(compose_config("train", [f"experiment={SECOND}"])) == text
    with pytest.raises(hydra.errors.HydraException):
        compose_config("train", ["experiment=no_such"])
    assert OmegaConf.to_yaml(compose_config("train", [f"experiment={SECOND}"])) == text
