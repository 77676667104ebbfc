"""Numbers and pictures of a training, as JSON lines and as TensorBoard events."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from torch import nn
from torch.utils.tensorboard import SummaryWriter
from torch.utils.tensorboard.summary import hparams

from detector.engine.atomic_file import atomic_write
from detector.engine.histograms import count_values
from detector.engine.plan import is_due
from detector.evaluation.analysis import ErrorAnalysis
from detector.evaluation.curves import ClassCurve

SETTINGS = "hparams"


class MetricLog:
    """Appends to ``metrics.jsonl`` and to event files.

    Args:
        lines: the JSON lines file.
        tensorboard: folder of the event files.
        step: finished steps; when resuming, what was logged for later steps is dropped, since these
            steps are taken again.
        histograms: steps between histograms of weights and gradients; 0 is never.

    Raises:
        ValueError: a negative number of steps.
    """

    def __init__(self, lines: Path, tensorboard: Path, step: int = 0, histograms: int = 0) -> None:
        if histograms < 0:
            raise ValueError(
                f"logging.histograms={histograms}; it must be steps between histograms, such as "
                "500, or 0 for none"
            )
        self._every = histograms
        lines.parent.mkdir(parents=True, exist_ok=True)
        if lines.exists():
            _drop_after(lines, step)
        self._lines = open(lines, "a", encoding="utf-8")  # noqa: SIM115 (closed by close)
        self._folder = tensorboard
        self._events = SummaryWriter(str(tensorboard), purge_step=step + 1 if step else None)

    def training(self, step: int, values: dict[str, float]) -> None:
        """Losses, learning rate and the like; ``time/...`` is in seconds, a group of its own."""
        self._write({"kind": "training", "step": step, **values})
        for name, value in values.items():
            group, _, rest = name.rpartition("/")
            group = {"": "training", "time": "seconds"}.get(group, group)
            self._events.add_scalar(f"{group}/{rest}", value, step)

    def evaluation(self, step: int, metrics: dict[str, dict[str, Any]]) -> None:
        """``{"box": {"AP": ...}, "mask": {...}, "per_class": {name: {"box_AP": ...}}}``.

        Of classes the AP is drawn: the rest would be hundreds of charts, and is in the lines.
        """
        self._write({"kind": "evaluation", "step": step, **metrics})
        for kind, numbers in metrics.items():
            if kind != "per_class":
                for name, value in numbers.items():
                    self._draw_point(f"{kind}/{name}", value, step)
        for class_name, numbers in metrics.get("per_class", {}).items():
            for name, value in numbers.items():
                if name.rpartition("_")[2].startswith("AP"):
                    self._draw_point(f"{name}_of_classes/{class_name}", value, step)

    def curves(self, step: int, errors: dict[str, ErrorAnalysis]) -> None:
        """Precision-recall curves of all classes' detections together, and of each class."""
        for kind, analysis in errors.items():
            named = zip(analysis.class_names, analysis.curves, strict=True)
            for name, curve in (("all classes", analysis.overall), *named):
                if curve.num_objects:
                    self._draw_curve(f"{kind}_precision_recall/{name}", curve, step)

    def _draw_curve(self, name: str, curve: ClassCurve, step: int) -> None:
        precision, recall = np.array(curve.precision), np.array(curve.recall)
        right = np.rint(recall * curve.num_objects)
        wrong = np.where(right > 0, np.rint(right / np.maximum(precision, 1e-9)) - right, 0)
        missed = curve.num_objects - right
        self._events.add_pr_curve_raw(
            name, right, wrong, np.zeros(len(right)), missed, precision, recall, step, len(right)
        )

    def picture(self, step: int, name: str, image: np.ndarray) -> None:
        """An ``(H, W, 3)`` uint8 RGB picture, grouped with the others; a large one is shrunk."""
        thumbnail = Image.fromarray(image)
        thumbnail.thumbnail((800, 800))
        image = np.asarray(thumbnail)
        self._events.add_image(f"predictions/{name}", image, step, dataformats="HWC")

    def histograms(self, step: int, model: nn.Module) -> None:
        """Where they are due, of each trained parameter and its gradient, by the model's parts.

        Args:
            step: the finished one. Its gradients are those that the optimiser has seen.
            model: all its parameters on one device.
        """
        if not is_due(step, self._every):
            return
        trained = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
        gradients = [(name, p.grad) for name, p in trained if p.grad is not None]
        for kind, named in (("weights", trained), ("gradients", gradients)):
            found = count_values([values for _, values in named])
            for (name, _), histogram in zip(named, found, strict=True):
                if histogram is None:
                    continue
                part, _, rest = name.partition(".")
                self._events.add_histogram_raw(
                    f"{kind}_{part}/{rest or part}",
                    histogram.low,
                    histogram.high,
                    histogram.count,
                    histogram.sum,
                    histogram.sum_squares,
                    histogram.limits.tolist(),
                    histogram.counts.tolist(),
                    step,
                )

    def settings(self, given: Mapping[str, float | str], final: Mapping[str, float]) -> None:
        """A row of the table of trainings: what was set, and what came of it.

        It is a run of its own below the others' folder, since the table's columns are all the
        numbers that a run has. The columns are those of all rows together: a list of them in the
        events would keep later rows from having more.
        """
        folder = self._folder / SETTINGS
        shutil.rmtree(folder, ignore_errors=True)  # of the same training before it was resumed
        _, begin, end = hparams(dict(given), {})
        with SummaryWriter(str(folder)) as events:
            for summary in (begin, end):
                events.file_writer.add_summary(summary)
            for name, value in final.items():
                events.add_scalar(f"final/{name}", value)

    def _draw_point(self, name: str, value: float, step: int) -> None:
        # COCO's -1 says that nothing of that size or class exists: no point of a curve.
        if value >= 0:
            self._events.add_scalar(name, value, step)

    def close(self) -> None:
        self._lines.close()
        self._events.close()

    def _write(self, record: dict[str, Any]) -> None:
        self._lines.write(json.dumps(record, default=float) + "\n")
        self._lines.flush()


def _drop_after(lines: Path, step: int) -> None:
    """Rewrites the file without records of later steps and without a half-written last line."""
    kept = []
    for line in lines.read_text(encoding="utf-8").splitlines():
        try:
            if json.loads(line)["step"] <= step:
                kept.append(line + "\n")
        except (ValueError, KeyError):
            continue
    with atomic_write(lines) as file:
        file.write("".join(kept).encode())
