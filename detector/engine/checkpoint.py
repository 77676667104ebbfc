"""Checkpoints: what they hold, and how they are written and read.

A checkpoint is a ``torch.save`` file of plain tensors, numbers and text, readable with
``torch.load(path, weights_only=True)``:

    format          1
    model           the state dict to use: the averaged weights where an average is kept
    trained_model   the weights under training, only where ``model`` is their average
    config          YAML text of the composed configuration, interpolations kept, so that
                    ``data.root=...`` still moves every path below it
    class_names, category_ids   of label 0, 1, ...
    step            finished steps
    optimizer, loader   their states: momenta, position in the epoch's shuffled order
    evaluation      the last evaluation's metrics and step, or None
    best            the best value so far of the metric that chooses ``best.pt``, or None
    seconds         of training, for ``training.time_limit``
    loss_scale, early_stopping    their states, only where they are used
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

import hydra
import torch
from omegaconf import DictConfig, OmegaConf
from torch import nn

from detector.engine.atomic_file import atomic_write
from detector.evaluation.keypoints import NUMBERS as KEYPOINT_NUMBERS
from detector.evaluation.voc import NUMBERS

FORMAT = 1
# Where a configuration may take callables from: what builds models, data and optimisers.
TRUSTED = (
    "detector.backbones.",
    "detector.data.",
    "detector.engine.optimizer.",
    "detector.engine.runtime.",
    "detector.engine.schedule.",
    "detector.rcnn.",
    "detector.roi_heads.",
    "detector.rpn.",
    "albumentations.",
    "torch.nn.",
    "torch.optim.",
    "torchvision.ops.",
)
_log = logging.getLogger(__name__)

REQUIRED = ("format", "model", "config", "class_names", "category_ids", "step")
REQUIRED_TO_RESUME = ("optimizer", "loader", "evaluation", "best")


def save_checkpoint(
    path: Path, content: dict[str, Any], before: Callable[[], None] | None = None
) -> None:
    """Writes ``content`` atomically, so that a former ``path`` is never lost to a partial one.

    Args:
        path: the file.
        content: see above.
        before: called when everything is on the disk and ``path`` still the former file.

    Raises:
        FloatingPointError: a weight is not finite; nothing is written.
        OSError: it could not be written; ``path`` is as it was.
    """
    for name, value in content["model"].items():
        if value.is_floating_point() and not torch.isfinite(value).all():
            raise FloatingPointError(
                f"{path} was not written: weight {name!r} is not finite after step "
                f"{content['step']}. Lower optimizer.lr, or set training.gradient_clip"
            )
    with atomic_write(path, before) as file:
        guarded = _ReportedWrites(file)
        try:
            torch.save(content, guarded)
        except Exception as error:
            # torch reports a full disk as a place in its own source.
            raise guarded.error or error from None


class _ReportedWrites:
    """Passes writes on and remembers the one that failed."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.error: OSError | None = None

    def write(self, data: bytes) -> int:
        try:
            return self._file.write(data)
        except OSError as error:
            self.error = error
            raise

    def flush(self) -> None:
        self._file.flush()


def load_checkpoint(path: str | Path) -> dict[str, Any]:
    """Reads a checkpoint to the CPU.

    Args:
        path: the file, or a run directory, which stands for its ``checkpoints/last.pt``.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is broken, or not one of these checkpoints.
    """
    path = checkpoint_file(path)
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises many types for cut off, foreign and unsafe files
        reason = str(error).strip().split("\n")[0].split(". ")[0]
        raise ValueError(
            f"{path} cannot be read as a checkpoint ({type(error).__name__}: {reason}). The file "
            "is cut off or of another kind; take another one, for example previous.pt or best.pt "
            "beside last.pt, or train again"
        ) from error
    missing = [key for key in REQUIRED if not isinstance(content, dict) or key not in content]
    if missing:
        raise ValueError(
            f"{path} is not a checkpoint of this package: it has no {', '.join(missing)}. "
            "Give a file written by training, <run_dir>/checkpoints/last.pt or best.pt; weights of "
            f"another package become one by tools/convert.py source={path} output=FILE.pt"
        )
    if content["format"] != FORMAT:
        raise ValueError(
            f"{path} has checkpoint format {content['format']}, this version reads {FORMAT}; "
            "install the version that wrote it"
        )
    return content


def check_resumable(path: str | Path, content: dict[str, Any]) -> None:
    """Training goes on from a checkpoint only if it holds the state of the training too.

    Raises:
        ValueError: it does not; names what is missing.
    """
    missing = [key for key in REQUIRED_TO_RESUME if key not in content]
    if missing:
        raise ValueError(
            f"{path} has no {', '.join(missing)}: training cannot go on from it. Give a last.pt or "
            "best.pt as training wrote it"
        )


def check_newest(path: Path, content: dict[str, Any], last: Path) -> None:
    """Going on from an older checkpoint may not replace a later one of the same run.

    Args:
        path: of the checkpoint that training goes on from.
        content: its content.
        last: where training will save.

    Raises:
        ValueError: there is a later checkpoint at ``last``.
    """
    if not last.is_file() or (path.exists() and path.samefile(last)):
        return
    try:
        saved = load_checkpoint(last)["step"]
    except ValueError:  # nothing is lost with a broken one
        return
    if saved > content["step"]:
        raise ValueError(
            f"{path} is of step {content['step']}, and training on from it would overwrite {last} "
            f"of step {saved}. Choose another run_dir, or go on with resume={last}"
        )


def checkpoint_file(path: str | Path) -> Path:
    """``path`` itself, or ``checkpoints/last.pt`` of the run directory ``path``.

    Raises:
        FileNotFoundError: there is no such file.
    """
    given = path = Path(path).expanduser()
    if path.is_dir():
        path = path / "checkpoints" / "last.pt"
    if not path.is_file():
        siblings = sorted(str(file) for file in path.parent.glob("*.pt"))
        if path.parent.name == "checkpoints":  # the folder above may hold runs named by their time
            above = path.parents[1]
            siblings = siblings or sorted(map(str, above.glob(f"*/checkpoints/{path.name}")))[-3:]
        remedy = f"there are {', '.join(siblings)}" if siblings else "check the path"
        raise FileNotFoundError(f"no checkpoint {path if path != given else given}: {remedy}")
    return path


def checkpoint_config(content: dict[str, Any], allow_code: bool = False) -> DictConfig:
    """The configuration in a checkpoint, without initial weights: the checkpoint has its own.

    A configuration names what is to be called. A checkpoint may come from anywhere, and using one
    must not run whatever it names.

    Args:
        content: of :func:`load_checkpoint`.
        allow_code: accept callables outside :data:`TRUSTED`, as one's own backbone is.

    Raises:
        ValueError: it names something else, and ``allow_code`` is false.
    """
    config = OmegaConf.create(content["config"])
    assert isinstance(config, DictConfig)
    foreign = sorted({name for name in _targets(config) if not _is_trusted(name)})
    if foreign and not allow_code:
        raise ValueError(
            f"the checkpoint's configuration calls {', '.join(foreign)}, which is not part of this "
            "package. If you trust the file, pass allow_code=true"
        )
    if "weights" in config.model.get("backbone", {}):
        config.model.backbone.weights = None
    return config


def _is_trusted(name: str) -> bool:
    """Whether a callable is trusted by its name and by where it was defined.

    A trusted module's name also leads to whatever that module imports, ``os.system`` for example.
    """
    if not name.startswith(TRUSTED):
        return False
    try:
        target = hydra.utils.get_object(name)
    except (ImportError, AttributeError, ValueError):
        return True  # there is no such thing to call; building says so, naming the key
    defined = f"{getattr(target, '__module__', '')}.{getattr(target, '__qualname__', '')}"
    return defined.startswith(TRUSTED)


def _targets(value: Any) -> Iterator[str]:
    """Every ``_target_`` below, and what ``hydra.utils.get_class`` would import."""
    if OmegaConf.is_config(value):
        # Resolved, since an interpolation can make a node with a target out of text.
        value = OmegaConf.to_container(value, resolve=True)
    if isinstance(value, dict):
        if "_target_" in value:
            target = str(value["_target_"])
            yield str(value.get("path")) if target == "hydra.utils.get_class" else target
        for child in value.values():
            yield from _targets(child)
    elif isinstance(value, list):
        for child in value:
            yield from _targets(child)


def load_weights(model: nn.Module, state: dict[str, torch.Tensor], path: str | Path) -> None:
    """Strictly loads ``state``, read from ``path``, into ``model``.

    Raises:
        ValueError: names or shapes differ; the message counts them and names the first ones.
    """
    expected = model.state_dict()
    problems = []
    for title, names in (
        ("missing", [name for name in expected if name not in state]),
        ("unknown", [name for name in state if name not in expected]),
        (
            "of another shape",
            [
                f"{name} {tuple(state[name].shape)} for {tuple(value.shape)}"
                for name, value in expected.items()
                if name in state and state[name].shape != value.shape
            ],
        ),
    ):
        if names:
            more = ", ..." if len(names) > 3 else ""
            problems.append(f"{len(names)} {title} ({', '.join(names[:3])}{more})")
    if problems:
        raise ValueError(
            f"{path} holds another model than the configured one: {'; '.join(problems)}. "
            "Use the experiment and model settings that it was trained with"
        )
    model.load_state_dict(state)


def check_classes(
    path: str | Path,
    content: dict[str, Any],
    class_names: list[str],
    dataset: str | Path,
) -> None:
    """Refuses a dataset whose labels mean something else than the checkpoint's.

    Raises:
        ValueError: another number of classes, or the same names in another order.
    """
    known = list(content["class_names"])
    if len(known) != len(class_names):
        raise ValueError(
            f"{path} was trained on {len(known)} classes ({_some(known)}), but {dataset} has "
            f"{len(class_names)} ({_some(class_names)}). Use the dataset it was trained on, or "
            "a checkpoint that was trained on this one"
        )
    if known != class_names and sorted(known) == sorted(class_names):
        raise ValueError(
            f"{path} and {dataset} have the same classes in another order: {_some(known)} and "
            f"{_some(class_names)}. Give the categories the ids' order of the training set"
        )
    if known != class_names:
        _log.warning(
            "%s calls its classes %s, %s calls them %s: they are taken to be the same, in order",
            *(path, _some(known), dataset, _some(class_names)),
        )


def _some(names: list[str]) -> str:
    return ", ".join(names[:5]) + (", ..." if len(names) > 5 else "")


def best_metric(
    name: str | None,
    has_masks: bool,
    max_detections: list[int],
    metric: str = "coco",
    has_keypoints: bool = False,
) -> tuple[str, str]:
    """The number that decides about ``best.pt``, as its keys in an evaluation's metrics.

    Args:
        name: such as ``"mask.AP"`` or ``"box.AP50"``; ``None`` is the AP of keypoints, or else of
            masks, or else of boxes, and ``"voc.AP50"`` of VOC's.
        has_masks: whether masks are evaluated.
        max_detections: limits of the evaluation.
        metric: ``"coco"``, ``"lvis"`` or ``"voc"``, the kind of evaluation.
        has_keypoints: whether keypoints are evaluated.

    Raises:
        ValueError: there is no such metric.
    """
    if metric == "voc":
        keys_of = {"voc": list(NUMBERS)}
    else:
        keys = ["AP", "AP50", "AP75", "APs", "APm", "APl", "ARs", "ARm", "ARl"]
        if metric == "lvis":
            keys += ["APr", "APc", "APf", "AR300"]
        else:
            keys += [f"AR{limit}" for limit in max_detections]
        keys_of = dict.fromkeys(("box", "mask") if has_masks else ("box",), keys)
        if has_keypoints:
            keys_of["keypoint"] = list(KEYPOINT_NUMBERS)
    if name is None:
        kind = list(keys_of)[-1]
        return kind, keys_of[kind][0]
    kind, _, key = name.partition(".")
    if key not in keys_of.get(kind, ()):
        keys = keys_of.get(kind) or next(iter(keys_of.values()))
        raise ValueError(
            f"checkpoint.metric={name} is not known: write one of {', '.join(keys_of)}, a dot, and "
            f"one of {', '.join(keys)}"
        )
    return kind, key
