"""Works on datasets: examines, shows, converts, divides and downloads them.

python tools/data.py action=check experiment=NAME data.root=DIR output=DIR
python tools/data.py action=browse experiment=NAME data.root=DIR output=DIR
python tools/data.py action=download dataset=voc07 output=DIR
python tools/data.py action=convert data=coco data.root=DIR to=yolo output=DIR
python tools/data.py action=split data=labelme data.root=DIR split=train to=coco output=DIR
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from omegaconf import DictConfig
from rich.console import Console

from detector.commands.browse import browse
from detector.commands.check import check
from detector.commands.download import download
from detector.data.index import AnnotationIndex
from detector.data.splitting import split_images
from detector.data.writers.formats import FORMATS, Format
from detector.data.writers.image_files import WAYS, place_images, placed_names
from detector.engine import assembly
from detector.engine.progress import open_console

SPLITS = ("train", "val")


def data(cfg: DictConfig) -> None:
    """Does what ``cfg.action`` says.

    Args:
        cfg: composed from ``configs/data.yaml``.

    Raises:
        ValueError, FileNotFoundError: a setting or a dataset that cannot be used.
    """
    if cfg.action not in ACTIONS:
        raise ValueError(f"action={cfg.action} is not known: write {', '.join(ACTIONS)}")
    ACTIONS[cfg.action](cfg, open_console())


def convert(cfg: DictConfig, console: Console) -> None:
    """Writes ``cfg.split`` of a dataset, or both splits, in another format."""
    if cfg.split is not None and cfg.split not in SPLITS:
        raise ValueError(f"split={cfg.split} is not known: write train, val or null for both")
    splits = SPLITS if cfg.split is None else (cfg.split,)
    parts = {split: _read(cfg, split, console) for split in splits}
    _write(cfg, parts, console)


def split(cfg: DictConfig, console: Console) -> None:
    """Divides ``cfg.split`` of a dataset into train and val."""
    if cfg.split not in SPLITS:
        raise ValueError(f"split={cfg.split} cannot be divided: write split=train or split=val")
    index = _read(cfg, cfg.split, console)
    is_val = split_images(index, cfg.fraction, cfg.seed, cfg.stratify, cfg.group)
    _write(cfg, {"train": index.keep_images(~is_val), "val": index.keep_images(is_val)}, console)


ACTIONS: dict[str, Callable[[DictConfig, Console], None]] = {
    "check": check,
    "browse": browse,
    "convert": convert,
    "download": download,
    "split": split,
}


def _read(cfg: DictConfig, split: str, console: Console) -> AnnotationIndex:
    cfg.data[split].augment = None
    if "keep_empty" in cfg.data[split]:
        cfg.data[split].keep_empty = True
    dataset = assembly.build_dataset(cfg.data, split)
    console.print(assembly.describe_dataset(dataset), soft_wrap=True)
    return dataset.index


def _write(cfg: DictConfig, parts: dict[str, AnnotationIndex], console: Console) -> None:
    form = _choose_format(cfg)
    output = Path(str(cfg.output))
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise ValueError(f"output={output} is not empty; name a new folder")
    for name, index in parts.items():
        folder = output / form.images.format(split=name)
        if cfg.images == "reference":
            names = [Path(path).resolve().as_posix() for path in index.paths()]
        else:
            names = placed_names(index)
            num_copied = place_images(index, names, folder, cfg.images)
            if num_copied and cfg.images == "hardlink":
                console.print(f"{folder}: {num_copied} images copied, links cannot reach there")
        # Said before the notes on what the format cannot hold, which is left out of this number.
        console.print(f"{name}: writing {len(index)} images, {index.num_annotations} annotations")
        for note in form.write(index, names, output, name):
            console.print(f"{name}: {note}", soft_wrap=True, markup=False)
    any_part = next(iter(parts.values()))
    console.print(f"read with {form.read_with(any_part, output)}", soft_wrap=True, markup=False)


def _choose_format(cfg: DictConfig) -> Format:
    if cfg.to not in FORMATS:
        raise ValueError(f"to={cfg.to} is not known: write {', '.join(FORMATS)}")
    if cfg.images not in WAYS:
        raise ValueError(f"images={cfg.images} is not known: write {', '.join(WAYS)}")
    form = FORMATS[cfg.to]
    if form.needs_images and cfg.images == "reference":
        raise ValueError(
            f"images=reference: in the format {cfg.to} images lie beside their annotations; write "
            "images=hardlink, which takes no room either, or images=copy"
        )
    return form
