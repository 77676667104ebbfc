"""The names of a dataset's classes, where its annotations only use them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

FILE_NAMES = ("classes.txt", "labels.txt")


def choose_classes(classes: Sequence[str] | Path | str | None, folder: Path) -> list[str] | None:
    """The names in the order of the labels, or ``None`` where the annotations have to tell.

    Args:
        classes: the names, or a file with one on each line; ``None``: the file ``classes.txt`` or
            ``labels.txt`` in ``folder``, where there is one.
        folder: also what the file's path is relative to.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: names are missing, or stand twice.
    """
    if classes is None:
        there = [name for name in FILE_NAMES if (folder / name).is_file()]
        if not there:
            return None
        classes = there[0]
    if isinstance(classes, list | tuple):
        return _check(list(classes), "classes")
    file = folder / Path(str(classes))
    if not file.is_file():
        raise FileNotFoundError(
            f"{file}: no such file of classes; write one name per line, or list the names: "
            "data.classes=[cat,dog]"
        )
    try:
        lines = file.read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise ValueError(f"{file}: not a text file ({error}); write one name per line") from error
    names = [line.strip() for line in lines if line.strip()]
    # Labelme's own lists begin with these two, which name no class.
    return _check([name for name in names if name not in ("__ignore__", "_background_")], str(file))


def check_name(name: object) -> str | None:
    """What is wrong with the name of a class, or ``None``."""
    if not isinstance(name, str) or not name.strip():
        return "it has no class"
    if not name.isprintable():
        return f"its class {name!r} holds characters that cannot be shown"
    return None


def _check(names: list, where: str) -> list[str]:
    if not names:
        raise ValueError(f"{where} names no class; list the names, such as [cat, dog]")
    for name in names:
        if check_name(name) is not None:
            raise ValueError(f"{where} holds {name!r}, which is no name; write it in quotes")
        if names.count(name) > 1:
            raise ValueError(f'{where} holds "{name}" twice; remove one')
    return names
