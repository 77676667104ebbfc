"""Find objects in pictures and draw them.

    python tools/predict.py checkpoint=runs/short/checkpoints/best.pt input=photo.jpg output=found
    python tools/predict.py checkpoint=best.pt input=photos/ output=found
    python tools/predict.py checkpoint=best.pt 'input=photos/*.png' output=found
    python tools/predict.py --help                                     # every setting

Writes each picture with boxes, names, scores and masks, and ``predictions.json`` in COCO's results
format. ``detector predict ...`` is the same from any folder.
"""

from detector.cli import run_tool

if __name__ == "__main__":
    run_tool("predict")
