"""The paper's 4-step alternating training (Ren et al., 2015, section 3.2) of a Faster R-CNN.

python tools/train.py training=alternating model=faster_rcnn_fpn ... run_dir=DIR
python tools/train.py training=alternating ... run_dir=DIR resume=auto    goes on where it stopped

    DIR/1_rpn          the RPN, from ImageNet weights
    DIR/2_fast_rcnn    Fast R-CNN on the RPN's proposals, from ImageNet weights too
    DIR/3_rpn          the RPN's layers, anew, on the convolutions of stage 2, which stay fixed
    DIR/4_fast_rcnn    Fast R-CNN's layers, on from stage 2, on these convolutions and proposals
    DIR/proposals      of the training and validation images, named by what proposed them
    DIR/checkpoints    last.pt: backbone and Fast R-CNN of stage 4 with the RPN of stage 3

Each stage is an ordinary training. The convolutions are all of the model's backbone.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from rich.console import Console

from detector.commands.evaluate import evaluate
from detector.commands.propose import propose
from detector.commands.train import train
from detector.config_files import find_configs
from detector.engine import assembly
from detector.engine.atomic_file import write_json
from detector.engine.batch_scaling import is_auto
from detector.engine.checkpoint import checkpoint_config, load_checkpoint
from detector.engine.parts import build_without_memory
from detector.engine.progress import open_console
from detector.engine.run_directory import RunDirectory, choose_run_directory, resume_command
from detector.engine.weights.initial_weights import begins_elsewhere
from detector.engine.weights.unified_network import SHARED, check_shared, unite


@dataclass(frozen=True)
class Stage:
    """One of the four trainings.

    Attributes:
        name: its folder in the run directory.
        kind: ``"rpn"`` or ``"fast_rcnn"``.
        init: the parts that begin as another stage left them. If there are any, the shared
            convolutions are among them, and stay so.
        proposals: the stage whose proposals a Fast R-CNN is trained on.
    """

    name: str
    kind: str
    init: Mapping[str, str] = field(default_factory=dict)
    proposals: str | None = None


STAGES = (
    Stage("1_rpn", "rpn"),
    Stage("2_fast_rcnn", "fast_rcnn", proposals="1_rpn"),
    # The paper's step 3 begins with the detector network, which has no RPN's layers.
    Stage("3_rpn", "rpn", {SHARED: "2_fast_rcnn"}),
    Stage("4_fast_rcnn", "fast_rcnn", {SHARED: "3_rpn", "box_branch": "2_fast_rcnn"}, "3_rpn"),
)
TARGETS = {"rpn": "detector.rcnn.ProposalNetwork", "fast_rcnn": "detector.rcnn.FastRCNN"}
UNIFIED = "detector.rcnn.FasterRCNN"
OWN_PARTS = {"rpn": ("rpn",), "fast_rcnn": ("num_classes", "roi_sampler", "box_branch")}
# What may differ between the stages of one network.
OWN_SETTINGS = (
    *("augment", "checkpoint", "data", "evaluation", "logging"),
    *("model", "optimizer", "schedule", "training"),
)


def train_alternating(cfg: DictConfig) -> dict[str, Any]:
    """Trains the four stages, unites them and evaluates the network.

    Args:
        cfg: composed from ``configs/train.yaml`` with ``training=alternating``.

    Returns:
        The metrics of the unified network, as written to ``metrics.json``.

    Raises:
        ValueError, FileNotFoundError: what the user has to put right.
        SystemExit: stopped within a stage, as in :func:`detector.commands.train.train`.
    """
    cfg, own = split_settings(cfg)
    run = _run_directory(cfg)
    _check_order(run)
    console = open_console()
    if run.metrics.is_file():
        console.print(f"{run.path} has finished; see {run.last} and {run.metrics}", soft_wrap=True)
        return json.loads(run.metrics.read_text())
    # Parts that do not fit would else be found by a later stage, hours from now.
    build_without_memory(cfg, num_classes=2)
    console.print(f"4 stages; after a stop go on with\n    {resume_command(run)}", soft_wrap=True)

    for stage in STAGES:
        directory = stage_directory(run, stage.name)
        config = stage_config(cfg, own[stage.kind], stage, run)
        if directory.metrics.is_file():
            _report_finished(directory, config, console)
            continue
        if stage.proposals is not None:
            for split in ("train", "val"):
                config.data[split].proposals = str(
                    export_proposals(cfg, stage.proposals, split, run, console)
                )
        console.rule(stage.name)
        train(config, whole=run)

    _, second, rpn, fast_rcnn = (stage_directory(run, stage.name).last for stage in STAGES)
    unite(cfg, rpn, fast_rcnn, run)
    count = check_shared([second, rpn, fast_rcnn, run.last])
    console.rule("unified network")
    console.print(
        f"the {count} tensors of the convolutions ({SHARED}) are bit-equal in "
        f"{', '.join(stage.name for stage in STAGES[1:])} and {run.last}",
        soft_wrap=True,
    )
    metrics = evaluate(_tool_config(cfg, "evaluate", checkpoint=str(run.last)))
    write_json(run.metrics, metrics)
    return metrics


def split_settings(cfg: DictConfig) -> tuple[DictConfig, dict[str, DictConfig]]:
    """The configuration of the unified network, and what differs in the stages of a kind.

    Raises:
        ValueError: another model than a Faster R-CNN, or settings that no stage has.
    """
    cfg = cfg.copy()
    if cfg.model.get("_target_") != UNIFIED:
        raise ValueError(
            f"training=alternating trains a Faster R-CNN, but the model is {cfg.model._target_}; "
            "choose one such as model=faster_rcnn_fpn"
        )
    if cfg.freeze or begins_elsewhere(cfg.init):
        raise ValueError("training=alternating sets init and freeze itself; leave them out")
    stages = cfg.training.stages
    for kind in stages:
        if kind not in TARGETS:
            raise ValueError(f"training.stages.{kind}: the stages are {' and '.join(TARGETS)}")
        for key in stages[kind]:
            if key not in OWN_SETTINGS:
                raise ValueError(
                    f"training.stages.{kind}.{key}: stages may differ in {', '.join(OWN_SETTINGS)}"
                )
        foreign = [key for key in stages[kind].get("model", ()) if key not in OWN_PARTS[kind]]
        if foreign:
            raise ValueError(
                f"training.stages.{kind}.model.{foreign[0]}: set it for all stages, "
                f"model.{foreign[0]}; this one's own are {', '.join(OWN_PARTS[kind])}"
            )
    given = OmegaConf.to_container(stages, resolve=False)
    own = {kind: OmegaConf.create(given.get(kind, {})) for kind in TARGETS}
    OmegaConf.set_struct(cfg.training, False)
    del cfg.training["stages"]
    OmegaConf.set_struct(cfg.training, None)
    for settings in own.values():
        if "model" in settings:
            cfg.model = OmegaConf.merge(cfg.model, settings.pop("model"))
    return cfg, own


def stage_directory(run: RunDirectory, name: str) -> RunDirectory:
    """The run directory of a stage."""
    return RunDirectory(run.path / name)


def stage_config(cfg: DictConfig, own: DictConfig, stage: Stage, run: RunDirectory) -> DictConfig:
    """The configuration of a stage, but for the files of proposals.

    Args:
        cfg, own: from :func:`split_settings`.
        stage: which one.
        run: of the whole training.
    """
    config = OmegaConf.merge(cfg, own)
    assert isinstance(config, DictConfig)
    config.run_dir = str(stage_directory(run, stage.name).path)
    config.resume = "auto"
    for part, source in stage.init.items():
        config.init[part] = str(stage_directory(run, source).last)
    config.freeze = [SHARED] if stage.init else []
    if stage.proposals is not None:
        for split in ("train", "val"):
            config.data[split].max_proposals = _num_proposals(cfg, split)
    OmegaConf.set_struct(config.model, False)
    config.model._target_ = TARGETS[stage.kind]
    for kind, parts in OWN_PARTS.items():
        for part in parts if kind != stage.kind else ():
            del config.model[part]
    OmegaConf.set_struct(config.model, None)
    multipliers = config.optimizer.get("lr_multipliers")
    others = {part for kind in OWN_PARTS if kind != stage.kind for part in OWN_PARTS[kind]}
    if multipliers:  # parts of the other kind's networks learn in its stages
        config.optimizer.lr_multipliers = {
            path: factor
            for path, factor in multipliers.items()
            if path.partition(".")[0] not in others
        }
    return config


def export_proposals(
    cfg: DictConfig, source: str, split: str, run: RunDirectory, console: Console
) -> Path:
    """The file of what the RPN of a finished stage proposes; written unless it is there.

    Its name has a digest of the checkpoint, so that an older one's proposals are not mistaken for
    this one's.
    """
    checkpoint = stage_directory(run, source).last
    number = _num_proposals(cfg, split)
    with checkpoint.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()[:16]
    path = run.path / "proposals" / f"{source}_{split}_{number}_{digest}.npz"
    if path.is_file():
        console.print(f"{path}: proposals of {checkpoint}, written before", soft_wrap=True)
        return path
    console.rule(f"proposals of {source}, {split}")
    options = {"checkpoint": str(checkpoint), "output": str(path)}
    # Images as in evaluation, which a file can be for, but as many boxes before and after NMS as in
    # training: py-faster-rcnn lets even more into NMS here, all of them.
    layer = f"{'train' if split == 'train' else 'test'}_proposals"
    options |= {"split": split, "num_proposals": number, "layer": layer}
    return propose(_tool_config(cfg, "propose", **options))


def _num_proposals(cfg: DictConfig, split: str) -> int:
    """As many as joint training and the unified network give their second stage."""
    rpn = cfg.model.rpn
    return (rpn.train_proposals if split == "train" else rpn.test_proposals).post_nms_top_n


def _run_directory(cfg: DictConfig) -> RunDirectory:
    """As :func:`choose_run_directory`; a run may have stages and no checkpoint of its own yet."""
    if cfg.resume not in (None, "auto"):
        raise ValueError(
            f"resume={cfg.resume}: training=alternating goes on with run_dir=FOLDER resume=auto, "
            "each stage from its own checkpoint"
        )
    run_dir = cfg.run_dir
    if run_dir is None and cfg.resume == "auto":
        begun = sorted(Path("runs", cfg.name).glob(f"*/{STAGES[0].name}"))
        run_dir = str(begun[-1].parent) if begun else None
    # Without a run directory, a new one: the newest of this name may be of a joint training.
    run, _ = choose_run_directory(run_dir, cfg.resume if run_dir else None, cfg.name)
    if cfg.resume is None and any(run.path.glob("*/checkpoints/*.pt")):
        raise ValueError(
            f"run_dir={run.path} already holds stages, which a new training would overwrite. "
            "Go on with resume=auto, or choose another run_dir"
        )
    return run


def _check_order(run: RunDirectory) -> None:
    """No stage may be older than what it is to begin with.

    Raises:
        ValueError: one has checkpoints though an earlier one has not finished.
    """
    unfinished = None
    for directory in (*(stage_directory(run, stage.name) for stage in STAGES), run):
        if unfinished and any(directory.path.glob("checkpoints/*.pt")):
            raise ValueError(
                f"{directory.path} has checkpoints, but {unfinished.path}, which comes before it, "
                f"has not finished. Delete {directory.path}/checkpoints, or choose another run_dir"
            )
        if not directory.metrics.is_file():
            unfinished = unfinished or directory


def _report_finished(directory: RunDirectory, config: DictConfig, console: Console) -> None:
    console.print(f"{directory.path.name} has finished; see {directory.metrics}", soft_wrap=True)
    former = checkpoint_config(load_checkpoint(directory.last), allow_code=True)
    filled = ["num_classes", "data.train.proposals", "data.val.proposals"]  # by the training itself
    if config.training.max_epochs is not None:
        filled.append("training.max_steps")
    if is_auto(config.data.batch_size):
        filled.append("data.batch_size")
    for key in filled:
        OmegaConf.update(config, key, OmegaConf.select(former, key))
    for change in assembly.config_changes(former, config):
        console.print(f"warning: has no effect on it any more: {change}", soft_wrap=True)


def _tool_config(cfg: DictConfig, tool: str, **settings: Any) -> DictConfig:
    """What ``tools/<tool>.py`` gets: its own settings, the data and the runtime as given now."""
    own = OmegaConf.load(find_configs() / f"{tool}.yaml")
    del own["defaults"]
    given = {
        "data": OmegaConf.to_container(cfg.data, resolve=False),
        "runtime": assembly.plain(cfg.runtime),
        "allow_code": True,
    }
    return OmegaConf.merge(own, given, settings)
