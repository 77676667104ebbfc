r"""Read other packages' weights, and write ours as theirs.

    python tools/convert.py source=maskrcnn_resnet50_fpn_coco.pth output=mask.pt
    python tools/convert.py output=mask.pt \
        source=torchvision://MaskRCNN_ResNet50_FPN_V2_Weights.COCO_V1
    python tools/convert.py source=runs/mine/checkpoints/best.pt to=torchvision output=theirs.pth
    python tools/convert.py --help    # every setting

The checkpoint that is written has the recipe, the classes and the category ids with it: evaluate
and predict need nothing else. ``detector convert ...`` is the same from any folder.
"""

from detector.cli import run_tool

if __name__ == "__main__":
    run_tool("convert")
