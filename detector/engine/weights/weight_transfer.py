"""What a model takes over from a checkpoint of another model: whatever has its name and fits."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from detector.engine.weights.class_rows import (
    ClassRows,
    NameMatch,
    carry_rows,
    class_rows,
    match_names,
    rows_fit,
)

# A counter that no layer of ours uses; frozen batch norms have none.
COUNTER = "num_batches_tracked"


@dataclass
class Transfer:
    """What became of every tensor of a model and of a checkpoint, but for counters of batch norms.

    Attributes:
        source: the checkpoint, as the user named it.
        matches: how the names that rows belong to go on, by what they are of; of what both have.
        loaded: names of tensors that were copied.
        carried: likewise, whose rows were carried by name; the other rows are random.
        reinitialised: whose rows belong to other names; they keep their random values.
        missing: of the model that the checkpoint does not have; likewise.
        unused: of the checkpoint that the model does not have.
        sizes: elements of each of these tensors.
        warnings: sentences about what may be a mistake.
    """

    source: str
    matches: dict[str, NameMatch]
    loaded: list[str] = field(default_factory=list)
    carried: list[str] = field(default_factory=list)
    reinitialised: list[str] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    unused: list[str] = field(default_factory=list)
    sizes: dict[str, int] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)


def transfer_weights(
    model: nn.Module,
    content: Mapping[str, Any],
    names: Mapping[str, Sequence[str]],
    source: str,
    by_name: bool = False,
) -> Transfer:
    """Begins with whatever of a checkpoint has its place in the model.

    Args:
        model: a new one.
        content: of a checkpoint; its ``class_names`` (and ``keypoint_names``) are those of the
            rows of its heads.
        names: of the model's ``"classes"`` (and ``"keypoints"``).
        source: the checkpoint, for messages.
        by_name: see :func:`detector.engine.weights.class_rows.match_names`.

    Raises:
        ValueError: tensors differ in shape for another reason than the number of classes, or
            nothing of a part that both have fits. Nothing is copied then.
    """
    own = {n: v for n, v in model.state_dict().items() if not n.endswith(COUNTER)}
    given = _placed(content["model"], own)
    rows = {n: row for n, row in class_rows(model).items() if row.of in names}
    former = {}
    for name, row in rows.items():
        if name in given and row.of not in former:
            former[row.of] = _former_names(content, row, given[name])
    matches = {of: match_names(former[of], names[of], by_name) for of in former}
    result = Transfer(source, matches)
    values, problems = {}, []
    for name, value in own.items():
        result.sizes[name] = value.numel()
        if name not in given:
            result.missing.append(name)
        elif name in rows:
            row = rows[name]
            match = matches[row.of]
            if not rows_fit(given[name], value, row, match):
                problems.append(name)
            elif match.how == "none":
                result.reinitialised.append(name)
            else:
                # On the CPU, where the checkpoint is.
                values[name] = carry_rows(given[name], value.cpu(), row, match)
                (result.carried if match.how == "name" else result.loaded).append(name)
        elif given[name].shape != value.shape:
            problems.append(name)
        else:
            values[name] = given[name]
            result.loaded.append(name)
    for name, value in given.items():
        if name not in own:
            result.unused.append(name)
            result.sizes[name] = value.numel()
    if problems:
        raise ValueError(_shape_error(problems, given, own, rows, matches, source))
    _check_parts(result)
    with torch.no_grad():
        model.load_state_dict(values, strict=False)
    return result


def _former_names(content: Mapping[str, Any], row: ClassRows, value: Tensor) -> list[str]:
    """The names of a checkpoint's rows; numbers if it has none, as files of other packages."""
    known = content.get({"classes": "class_names", "keypoints": "keypoint_names"}[row.of])
    return list(known or map(str, range(value.shape[row.dim] // row.per_name)))


def _placed(given: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """``given`` under the model's names. After C4, ``layer4`` is the head of the RoIs."""
    trunk, head = "backbone.trunk.layer4.", "box_branch.pooler.layer4."
    moves = any(n.startswith(head) for n in own) and not any(n.startswith(head) for n in given)
    return {
        name.replace(trunk, head) if moves and name.startswith(trunk) else name: value
        for name, value in given.items()
        if not name.endswith(COUNTER)
    }


def _shape_error(
    problems: Sequence[str],
    given: Mapping[str, Tensor],
    own: Mapping[str, Tensor],
    rows: Mapping[str, ClassRows],
    matches: Mapping[str, NameMatch],
    source: str,
) -> str:
    listing = []
    for name in problems[:6]:
        line = (
            f"{name}: {tuple(given[name].shape)} in the checkpoint, {tuple(own[name].shape)} here"
        )
        if name in rows:
            match, of = matches[rows[name].of], rows[name].of
            line += f", which {len(match.former)} and {len(match.names)} {of} do not explain"
        listing.append(line)
    more = f"\n  and {len(problems) - 6} more" if len(problems) > 6 else ""
    return (
        f"init={source}: {len(problems)} tensors have another shape than in the model, and not for "
        "the number of classes:\n  " + "\n  ".join(listing) + more
    )


def _check_parts(result: Transfer) -> None:
    """A part of which nothing fits is of another kind.

    Raises:
        ValueError: the checkpoint has such a part, or nothing at all fits.
    """
    for part in dict.fromkeys(name.partition(".")[0] for name in result.missing):
        inside = f"{part}."
        missing = [name for name in result.missing if name.startswith(inside)]
        unused = [name for name in result.unused if name.startswith(inside)]
        used = result.loaded + result.carried + result.reinitialised
        if unused and not any(name.startswith(inside) for name in used):
            raise ValueError(
                f"init={result.source}: nothing of its {part} fits the model's, which is another: "
                f"{', '.join(unused[:3])} there, {', '.join(missing[:3])} here"
            )
    if not result.loaded:
        raise ValueError(
            f"init={result.source}: none of its {len(result.unused)} tensors has a place in the "
            f"model: {', '.join(result.unused[:3])} there, {', '.join(result.missing[:3])} here"
        )
