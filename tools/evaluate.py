"""Evaluate a checkpoint: the twelve COCO numbers for boxes and masks, and AP per class.

    python tools/evaluate.py checkpoint=runs/short/checkpoints/best.pt
    python tools/evaluate.py checkpoint=best.pt data.root=data/mine    # on another dataset
    python tools/evaluate.py --help                                    # every setting

Prints a table and writes ``evaluation.json`` and the detections in COCO's results format.
``detector evaluate ...`` is the same from any folder.
"""

from detector.cli import run_tool

if __name__ == "__main__":
    run_tool("evaluate")
