"""Finds objects in images.

python tools/predict.py checkpoint=PATH input=photo.jpg output=found
python tools/predict.py checkpoint=PATH input='photos/*.jpg' output=found score_threshold=0.7
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from detector.data.images import read_image
from detector.engine import assembly
from detector.engine.atomic_file import write_json
from detector.engine.progress import open_console, track
from detector.predictor import find_images, load


def predict(cfg: DictConfig) -> list[dict[str, Any]]:
    """Writes a picture per image and ``predictions.json``, in COCO results format.

    Each record also has its image's ``file_name``. The ``image_id`` is the number that the file is
    named by where all files are named by numbers, as COCO's are; else they are counted from 1.

    Args:
        cfg: composed from ``configs/predict.yaml``.

    Returns:
        The records of ``predictions.json``.

    Raises:
        FileNotFoundError: no such checkpoint or input.
        ValueError: a broken checkpoint, or images that cannot be read; they are all named, and
            the results of the others have been written.
    """
    paths = find_images(str(cfg.input))  # a folder called 2024 is a number to Hydra
    runtime = assembly.build(cfg.runtime)
    tta = assembly.plain(cfg.evaluation.tta)
    detector = load(str(cfg.checkpoint), runtime=runtime, allow_code=cfg.allow_code, tta=tta)
    output = Path(cfg.output)
    output.mkdir(parents=True, exist_ok=True)

    console = open_console()
    console.print(f"{len(paths)} images from {cfg.input}", soft_wrap=True)
    records, unreadable, best_score = [], [], None
    names = picture_names(paths)
    numbered = list(zip(paths, image_ids(paths), strict=True))
    for path, image_id in track(numbered, len(paths), "predicting", "images", console):
        try:
            pixels = read_image(path)
        except (ValueError, OSError) as error:
            unreadable.append(str(error))
            continue
        found = detector.predict(pixels, score_threshold=0.0)
        if len(found):
            best_score = max(best_score or 0.0, float(found.scores.max()))
        result = found.above(cfg.score_threshold)
        if cfg.pictures:
            result.save(output / names[path])
        for record in result.to_coco(image_id=image_id):
            records.append({**record, "file_name": str(path)})
    write_json(output / "predictions.json", records)
    console.print(f"{len(records)} objects; written to {output}", soft_wrap=True)
    if not records and best_score is not None:
        console.print(
            f"the highest score is {best_score:.2g}, below score_threshold={cfg.score_threshold}; "
            "lower it to see what was found",
            soft_wrap=True,
        )
    if unreadable:
        listed = "\n  ".join(unreadable[:20])
        more = f"\n  ... and {len(unreadable) - 20} more" if len(unreadable) > 20 else ""
        raise ValueError(
            f"{len(unreadable)} of {len(paths)} images could not be read; repair or remove them:"
            f"\n  {listed}{more}"
        )
    return records


def image_ids(paths: list[Path]) -> list[int]:
    """Numbers that the files are named by, if all are and no two are equal; else 1, 2, ..."""
    numbers = [int(path.stem) for path in paths if path.stem.isascii() and path.stem.isdigit()]
    if len(numbers) == len(paths) and len(set(numbers)) == len(paths):
        return numbers
    return list(range(1, len(paths) + 1))


def picture_names(paths: list[Path]) -> dict[Path, str]:
    """A file name for each picture; files of one stem keep their extension in it."""
    stems = [path.stem for path in paths]
    names: dict[Path, str] = {}
    for number, path in enumerate(paths):
        name = path.stem if stems.count(path.stem) == 1 else f"{number + 1}_{path.name}"
        names[path] = f"{name}.jpg"
    return names
