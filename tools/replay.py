"""Take a training step that went wrong again, and say where its first non-finite value comes from.

    python tools/replay.py file=runs/mine/replay.pt
    python tools/replay.py --help    # every setting

A training that meets a non-finite loss or gradient writes ``replay.pt`` into its run directory:
the batch, the weights before the step, the seed. ``detector replay ...`` is the same from any
folder.
"""

from detector.cli import run_tool

if __name__ == "__main__":
    run_tool("replay")
