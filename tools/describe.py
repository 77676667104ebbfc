"""Show the parts of a model: output shapes, parameters and FLOPs, beside published numbers.

    python tools/describe.py experiment=mask_rcnn_r50_fpn_1x
    python tools/describe.py experiment=mask_rcnn_r50_fpn_1x height=1024 width=1024 batch=8
    python tools/describe.py '~experiment' model=faster_rcnn_c4 backbone=resnet101_c4 json=c4.json
    python tools/describe.py --help    # every setting

Needs no data, no weights and no GPU. ``detector describe ...`` is the same from any folder.
"""

from detector.cli import run_tool

if __name__ == "__main__":
    run_tool("describe")
