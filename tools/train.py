"""Train a model.

    python tools/train.py                                  # synthetic shapes, made on first use
    python tools/train.py training.max_steps=200 run_dir=runs/short
    python tools/train.py resume=auto run_dir=runs/short   # goes on where it stopped
    python tools/train.py experiment=nuclei_cpu data.root=data/nuclei
    python tools/train.py --help                           # every setting

``detector train ...`` is the same from any folder, ``make train ARGS="..."`` the same without an
environment of your own.
"""

from detector.cli import run_tool

if __name__ == "__main__":
    run_tool("train")
