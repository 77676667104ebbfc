"""Check datasets, look at samples, convert between formats, divide, and download public ones.

    python tools/data.py action=check experiment=NAME data.root=DIR output=DIR
    python tools/data.py action=browse experiment=NAME data.root=DIR output=DIR
    python tools/data.py action=download dataset=voc07 output=DIR
    python tools/data.py action=convert data=coco data.root=DIR to=yolo output=DIR
    python tools/data.py action=convert data=voc07 data.root=DIR split=train to=coco output=DIR
    python tools/data.py action=split data=labelme data.root=DIR split=train output=DIR fraction=.1
    python tools/data.py --help    # every setting

What the new format cannot hold is said. ``detector data ...`` is the same from any folder.
"""

from detector.cli import run_tool

if __name__ == "__main__":
    run_tool("data")
