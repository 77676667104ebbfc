"""The annotation index beside ``pycocotools.COCO()``, on a file of the size of COCO's train2017.

    python -m detector.benchmark.index_rows [images] [annotations] [repeats]

Every sample is a process of its own, so that none finds memory that another has fetched; the sides
take turns. Times are those of the call alone, without imports, as wall clock and as CPU time. The
image files are not looked at, which pycocotools does not do either.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from detector.benchmark.coco_sized import NUM_ANNOTATIONS, NUM_IMAGES, write_coco_sized

Sample = dict[str, float]

OURS_FIRST, OURS_AGAIN, THEIRS = "ours, first start", "ours, second start", "pycocotools"
SETTLE_SECONDS = 3.0  # after which a file counts as written
_NUM_WORKERS = 2


def measure_index(
    repeats: int,
    console: Console,
    num_images: int = NUM_IMAGES,
    num_annotations: int = NUM_ANNOTATIONS,
) -> dict[str, Any]:
    """Medians of the start and what each worker process costs, printed as a table.

    Returns:
        ``file_bytes``, ``rows`` (one per side: ``seconds``, ``cpu_seconds``, ``peak_bytes``),
        ``first_ratio``, ``second_ratio`` (pycocotools' time by ours, as wall clock), likewise
        ``first_cpu_ratio`` and ``second_cpu_ratio``, and ``worker_bytes``.
    """
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "instances.json"
        write_coco_sized(file, num_images, num_annotations)
        long_ago = time.time() - 60  # no file that is still being written
        os.utime(file, (long_ago, long_ago))
        time.sleep(SETTLE_SECONDS)  # the time of its last change cannot be set
        samples: dict[str, list[Sample]] = {THEIRS: [], OURS_FIRST: [], OURS_AGAIN: []}
        for number in range(repeats):
            cache = Path(folder) / f"cache{number}"
            samples[THEIRS].append(_run("theirs", file, cache))
            samples[OURS_FIRST].append(_run("ours", file, cache))
            samples[OURS_AGAIN].append(_run("ours", file, cache))
        worker_bytes = _measure_workers(file, cache)
        rows = [{"side": side} | _median(found) for side, found in samples.items()]
        theirs, first, again = rows
        report = {
            "file_bytes": file.stat().st_size,
            "images": num_images,
            "annotations": num_annotations,
            "repeats": repeats,
            "rows": rows,
            "first_ratio": theirs["seconds"] / first["seconds"],
            "second_ratio": theirs["seconds"] / again["seconds"],
            "first_cpu_ratio": theirs["cpu_seconds"] / first["cpu_seconds"],
            "second_cpu_ratio": theirs["cpu_seconds"] / again["cpu_seconds"],
            "worker_bytes": worker_bytes,
        }
    _print(report, console)
    return report


def _run(side: str, file: Path, cache: Path) -> Sample:
    command = [sys.executable, "-m", "detector.benchmark.index_rows", side, str(file)]
    done = subprocess.run(
        command, env=os.environ | {"DETECTOR_CACHE": str(cache)}, capture_output=True, text=True
    )
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} failed: {done.stderr}")
    return json.loads(done.stdout)


def _median(samples: list[Sample]) -> Sample:
    return {key: statistics.median(sample[key] for sample in samples) for key in samples[0]}


def _sample(side: str, file: Path) -> Sample:
    """One start, in this process."""
    start, cpu_start = time.perf_counter(), time.process_time()
    if side == "theirs":
        from pycocotools.coco import COCO

        start, cpu_start = time.perf_counter(), time.process_time()
        with contextlib.redirect_stdout(io.StringIO()):
            kept: Any = COCO(str(file))
    else:
        from detector.data.coco import read_coco

        start, cpu_start = time.perf_counter(), time.process_time()
        kept = read_coco(file, file.parent, check_files=False)
    seconds, cpu_seconds = time.perf_counter() - start, time.process_time() - cpu_start
    assert kept is not None
    return {"seconds": seconds, "cpu_seconds": cpu_seconds, "peak_bytes": _peak_bytes()}


def _measure_workers(file: Path, cache: Path) -> int | None:
    """Memory of its own that a worker needs to see every annotation, beside others that do."""
    if not Path("/proc/self/smaps_rollup").exists():
        return None
    command = [sys.executable, "-m", "detector.benchmark.index_rows", "worker", str(file)]
    environment = os.environ | {"DETECTOR_CACHE": str(cache)}
    workers = [
        subprocess.Popen(
            command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        for _ in range(_NUM_WORKERS)
    ]
    found = []
    # All of them have seen all of it before one is measured, and none ends before all are.
    for step in range(2):
        for worker in workers:
            assert worker.stdin is not None and worker.stdout is not None
            if step:
                worker.stdin.write("\n")
                worker.stdin.flush()
            line = worker.stdout.readline()
            if step:
                found.append(int(line))
    for worker in workers:
        worker.communicate("\n")
    return max(found)


def _work(file: Path) -> None:
    """A worker process: maps the index, sees everything, and says what that cost."""
    from detector.data.coco import read_coco

    before = _private_bytes()
    index = read_coco(file, file.parent, check_files=False)
    total = 0.0
    for image in range(len(index)):
        rows = index.annotations(image)
        total += float(index.boxes[rows].sum()) + len(index.file_name(image))
        first, last = index.ring_offsets[rows.start], index.ring_offsets[rows.stop]
        total += float(
            index.vertices[index.vertex_offsets[first] : index.vertex_offsets[last]].sum()
        )
    print(total, flush=True)
    sys.stdin.readline()
    print(_private_bytes() - before, flush=True)
    sys.stdin.readline()


def _private_bytes() -> int:
    lines = Path("/proc/self/smaps_rollup").read_text().splitlines()
    return sum(int(line.split()[1]) * 1024 for line in lines if line.startswith("Private_"))


def _peak_bytes() -> float:
    try:
        import resource
    except ImportError:  # Windows
        return float("nan")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return float(peak if sys.platform == "darwin" else peak * 1024)


def _print(report: dict[str, Any], console: Console) -> None:
    table = Table(
        title=f"{report['annotations']} annotations of {report['images']} images, "
        f"{report['file_bytes'] / 1e6:.0f} MB of JSON, medians of {report['repeats']}"
    )
    for heading in ("start", "wall s", "x", "CPU s", "x by CPU", "peak MB"):
        table.add_column(heading, justify="left" if heading == "start" else "right")
    theirs = report["rows"][0]
    for row in report["rows"]:
        table.add_row(
            row["side"],
            f"{row['seconds']:.3g}",
            f"{theirs['seconds'] / row['seconds']:.3g}",
            f"{row['cpu_seconds']:.3g}",
            f"{theirs['cpu_seconds'] / row['cpu_seconds']:.3g}",
            f"{row['peak_bytes'] / 1e6:.0f}",
        )
    console.print(table)
    if report["worker_bytes"] is not None:
        console.print(f"each worker needs {report['worker_bytes'] / 2**20:.1f} MiB of its own")


def main(words: list[str]) -> None:
    """``theirs|ours|worker FILE`` is one sample; numbers, or nothing, are the whole."""
    if words[:1] == ["worker"]:
        _work(Path(words[1]))
    elif words and not words[0].isdigit():
        print(json.dumps(_sample(words[0], Path(words[1]))))
    else:
        given = [int(word) for word in words]
        images, annotations, repeats = given + [NUM_IMAGES, NUM_ANNOTATIONS, 3][len(given) :]
        measure_index(repeats, Console(), images, annotations)


if __name__ == "__main__":
    main(sys.argv[1:])
