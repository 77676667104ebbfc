"""Measure the ops beside others', or what the kernels need of a card.

    python tools/benchmark.py                         # every op, on the GPU where there is one
    python tools/benchmark.py device=cpu json=cpu.json
    python tools/benchmark.py only=roi_align
    python tools/benchmark.py what=kernels            # needs no GPU
    python tools/benchmark.py --help                  # every setting

``detector benchmark ...`` is the same from any folder.
"""

from detector.cli import run_tool

if __name__ == "__main__":
    run_tool("benchmark")
