"""The command line: ``detector train|evaluate|... key=value ...`` from any folder.

Every tool is a Hydra main: ``configs/<tool>.yaml`` composed with the command line's overrides and
handed to one function. What a user can get wrong is printed as one message with exit code 2;
``DETECTOR_DEBUG=1`` shows the traceback instead.
"""

from __future__ import annotations

import difflib
import importlib
import os
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NoReturn

import hydra
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import ConfigCompositionException, HydraException, OverrideParseException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import InterpolationKeyError, OmegaConfBaseException

import detector
from detector.config_files import find_configs
from detector.data.slow_work import show_slow_work
from detector.engine.progress import late_bar
from detector.engine.sweep import SWEEP_DIR, report_sweep, row_directory, row_name
from detector.setting_values import fit_value

TOOLS = {
    "train": ("detector.commands.train", "trains a model: experiment=NAME data.root=FOLDER ..."),
    "evaluate": ("detector.commands.evaluate", "COCO numbers of checkpoint=FILE on a dataset"),
    "predict": (
        "detector.commands.predict",
        "pictures and detections: checkpoint=FILE input=FILE|FOLDER|GLOB output=FOLDER",
    ),
    "replay": (
        "detector.commands.replay",
        "a training step with a non-finite loss again: file=RUN_DIR/replay.pt",
    ),
    "propose": (
        "detector.commands.propose",
        "an RPN's proposals for Fast R-CNN: checkpoint=FILE output=FILE.npz split=train|val",
    ),
    "data": (
        "detector.commands.data",
        "datasets: action=check|browse|convert|split|download data=NAME data.root=FOLDER",
    ),
    "convert": (
        "detector.interop.convert",
        "weights of other packages in and out: source=FILE output=FILE [to=torchvision|detectron2]",
    ),
    "describe": ("detector.commands.describe", "parts, shapes, parameters, FLOPs: experiment=NAME"),
    "benchmark": (
        "detector.benchmark.run",
        "our numbers beside others': what=ops|train|infer|kernels|data|evaluate|all",
    ),
}
SEVERAL_RANKS = ("train", "evaluate")  # the tools that torchrun may start
_QUOTED = """'input="my photos/a=b.jpg"'"""
_OWN_DATA = (
    "Data of your own: data=custom, with data.root=FOLDER or, of train and val each, "
    "data.train.annotations=FILE data.train.images=FOLDER"
)
# FloatingPointError: training diverged; MemoryError: what is computed does not fit. Both explain.
_USER_ERRORS = (
    ValueError,
    OSError,
    FloatingPointError,
    MemoryError,
    HydraException,
    OmegaConfBaseException,
)


def main() -> None:
    """Entry point of the ``detector`` command."""
    arguments = sys.argv[1:]
    if arguments[:1] == ["--version"]:
        print(f"detector {detector.__version__}")
    elif not arguments or arguments[0] in ("-h", "--help"):
        print(_usage())
    elif arguments[0] not in TOOLS:
        near = difflib.get_close_matches(arguments[0], TOOLS, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        _fail("detector", f"no tool named {arguments[0]!r}{hint}\n\n{_usage()}")
    else:
        sys.argv = [f"{sys.argv[0]} {arguments[0]}", *arguments[1:]]
        run_tool(arguments[0])


def run_tool(name: str, config_dir: Path | None = None) -> None:
    """Compose ``<name>.yaml`` with the overrides in ``sys.argv`` and run the tool's function.

    Args:
        name: a key of ``TOOLS``; the function has the same name as the tool.
        config_dir: where the configs are; the package's own where not given.

    Raises:
        SystemExit: 2 after a user's error, 130 after Ctrl-C.
    """
    config_dir = config_dir or find_configs()
    module, _ = TOOLS[name]
    rows: dict[str, Any] = {}  # of a training for each value of some keys (Hydra's multirun)

    def run(config: DictConfig) -> None:
        sys.argv = list(command)  # a launcher may run this in a job with a command line of its own
        with _reported(name):
            _check_values(config, name, config_dir)
            _check_groups(config, config_dir)
            _check_alone(name)
            if os.environ.get("RANK", "0") == "0":
                show_slow_work(late_bar)
            tool = getattr(importlib.import_module(module), name)
            if name == "train" and HydraConfig.get().mode == RunMode.MULTIRUN:
                _train_row(tool, config, rows)
            elif name == "train":
                from detector.engine.time_limit import process_began

                tool(config, began=process_began())
            else:
                tool(config)

    sys.argv[1:] = [_spelt_out(word, name) for word in sys.argv[1:]]
    run.__module__ = f"detector.{name}"  # the name that Hydra's --help shows
    # Hydra would print errors in its own way and exit with 1; like this it hands them on.
    os.environ["HYDRA_FULL_ERROR"] = "1"
    with _reported(name, config_dir):
        if name == "train":  # Hydra writes the settings of several trainings there too
            run_dir = [word for word in sys.argv[1:] if word.startswith("run_dir=")][-1:]
            sys.argv += [f"{SWEEP_DIR}={word.partition('=')[2]}" for word in run_dir]
        command = list(sys.argv)
        hydra.main(version_base="1.3", config_path=str(config_dir), config_name=name)(run)()


def _spelt_out(word: str, tool: str) -> str:
    """``init=PATH`` as ``init.checkpoint=PATH``; other settings of ``init`` may stand beside it."""
    key, equals, value = word.partition("=")
    if not equals or value[:1] == "{":
        return word
    short = {"init": "init.checkpoint"}
    if tool == "train":
        short["batch_size"] = "data.batch_size"
    return f"{short.get(key, key)}={value}"


def _train_row(train: Callable, config: DictConfig, rows: dict[str, Any]) -> None:
    """One of several trainings, whose metrics are added to ``rows``."""
    # These need torch, which takes seconds.
    from detector.engine.distributed import place_in_environment
    from detector.engine.run_directory import RunDirectory

    row = row_name(HydraConfig.get().overrides.task, sys.argv[1:])
    folder = Path(HydraConfig.get().sweep.dir)
    directory = row_directory(folder, row, config.run_dir, config.resume)
    config.run_dir = str(directory)
    is_first = place_in_environment().rank == 0  # of several processes, which write one table
    if is_first:
        print(f"\n{row}: training {len(rows) + 1} in {directory.parent}", flush=True)
    rows[row] = train(config, whole=RunDirectory(directory.parent))
    if is_first:
        report_sweep(directory.parent, rows)


def _check_alone(tool: str) -> None:
    """Several processes of a tool that is not for them would overwrite each other's files."""
    if tool not in SEVERAL_RANKS and os.environ.get("WORLD_SIZE", "1") != "1":
        from detector.engine.distributed import check_alone  # it needs torch, which takes seconds

        check_alone(f"tools/{tool}.py")


def _check_values(config: DictConfig, tool: str, config_dir: Path) -> None:
    """Hold what the command line sets against the defaults of the groups that it chooses."""
    overrides = HydraConfig.get().overrides.task
    groups = {folder.name for folder in config_dir.iterdir() if folder.is_dir()}
    chosen = [word for word in overrides if _key_of(word).partition("/")[0] in groups]
    keys = [_key_of(word) for word in overrides if word not in chosen and word[0] != "~"]
    if not keys:
        return
    defaults = hydra.compose(tool, chosen)
    for key in keys:
        group = key.rpartition(".")[0]
        try:
            if group and not OmegaConf.is_config(OmegaConf.select(config, group)):
                continue  # a later word put something else in the place of the whole group
            value, default = (OmegaConf.select(node, key) for node in (config, defaults))
        except OmegaConfBaseException:  # it refers to what is not given, which the tool explains
            continue
        value, default = (_plain(node) for node in (value, default))
        fitted = fit_value(key, value, default)
        if fitted != value:
            OmegaConf.update(config, key, fitted)


def _check_groups(config: DictConfig, config_dir: Path) -> None:
    """A model reads some of its numbers from its backbone, not any backbone has them.

    Raises:
        ValueError: the backbone chosen lacks one, naming both choices and the remedy.
    """
    if not isinstance(config.get("model"), DictConfig):
        return
    try:
        OmegaConf.to_container(config.model, resolve=True)
    except InterpolationKeyError as error:
        lacking = re.search(r"'(model\.backbone\.(\w+))'", str(error))
        if lacking is None:
            raise
        choices = HydraConfig.get().runtime.choices
        files = sorted((config_dir / "backbone").glob("*.yaml"))
        fitting = [f.stem for f in files if re.search(f"^{lacking[2]}:", f.read_text(), re.M)]
        raise ValueError(
            f"model={choices['model']} does not go with backbone={choices['backbone']}: it reads "
            f"{lacking[1]}, which that backbone does not have. The first lines of "
            f"{config_dir / 'model' / choices['model']}.yaml say which it is for, one of "
            f"{', '.join(fitting)}"
        ) from None


def _key_of(override: str) -> str:
    return override.lstrip("+~").partition("=")[0].partition("@")[0]


def _plain(value: object) -> object:
    return OmegaConf.to_container(value) if OmegaConf.is_config(value) else value


class _reported:
    """Turns a user's error inside the ``with`` block into one message and an exit code."""

    def __init__(self, tool: str, config_dir: Path | None = None) -> None:
        self.tool = tool
        self.config_dir = config_dir

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: type | None, error: BaseException | None, traceback: object) -> None:
        if isinstance(error, KeyboardInterrupt):
            print(f"\ndetector {self.tool}: interrupted", file=sys.stderr)
            raise SystemExit(130) from None
        if isinstance(error, BrokenPipeError):  # as in `detector train --help | head`
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            raise SystemExit(141) from None
        # Where a launcher's job has failed, it repeats what the job has said.
        is_users = isinstance(error, _USER_ERRORS) or type(error).__name__ == "UncompletedJobError"
        if is_users and os.environ.get("DETECTOR_DEBUG") != "1":
            message = _explain(error, self.tool, self.config_dir)
            if self.config_dir is None:
                message += "\n(DETECTOR_DEBUG=1 shows where it was found)"
            _fail(f"detector {self.tool}", message)


def _fail(who: str, message: str) -> NoReturn:
    print(f"{who}: error: {message}", file=sys.stderr)
    raise SystemExit(2) from None


def _usage() -> str:
    width = max(map(len, TOOLS))
    rows = [f"  {name:{width}}  {purpose}" for name, (_, purpose) in TOOLS.items()]
    return "\n".join(
        [
            "usage: detector TOOL [key=value ...]",
            "",
            *rows,
            "",
            "detector TOOL --help lists a tool's settings; key=value changes them.",
        ]
    )


def _explain(error: BaseException, tool: str, config_dir: Path | None) -> str:
    message = str(error).strip() or type(error).__name__
    if isinstance(error, FileNotFoundError) and error.filename is not None:
        return f"no such file or folder: {error.filename}"
    missing = re.search(r"Missing mandatory value: (\S+)", message)
    if missing:
        return f"{missing[1]} must be given: {missing[1]}=..."
    if isinstance(error, OverrideParseException):
        reason = message.split("\nSee http")[0]
        if "missing EQUAL" in reason or "expecting ID" in reason:  # a path, with nothing before it
            reason += f"\nSettings are key=value without blanks, see `detector {tool} --help`"
        return f"{reason}\nA value with blanks, commas, brackets or = needs quotes: {_QUOTED}"
    if isinstance(error, HydraException):
        unknown = re.match(r"Could not override '([^']+)'", message)
        if isinstance(error, ConfigCompositionException) and unknown and config_dir is not None:
            return _explain_unknown_key(unknown[1], tool, config_dir)
        cause = error.__cause__
        while cause is not None:  # an error raised in a constructor arrives wrapped
            if isinstance(cause, (ValueError, OSError)) and str(cause):
                key = re.search(r"full_key: (\S+)", message)
                return f"{cause} (config key {key[1]})" if key else str(cause)
            cause = cause.__cause__
        message = _nearest_first(message.split("\nConfig search path")[0])
        if "Could not find 'data/" in message:
            message += f"\n{_OWN_DATA}"
    return message


def _nearest_first(message: str) -> str:
    """Of a choice that is not there, the names that look like it come first."""
    found = re.search(r"Could not find '[^']*?([^/']+)'\s+Available options in '(\S+)':\s", message)
    if found is None:
        return message
    wanted, group = found.groups()
    names = message[found.end() :].split()
    near = difflib.get_close_matches(wanted, names, n=4)
    near += [name for name in names if wanted in name and name not in near]
    if not near:
        return message
    others = ", ".join(name for name in names if name not in near[:4])
    first = f"there is no {group}={wanted}; did you mean {' or '.join(near[:4])}?"
    return f"{first}\nOthers: {others}" if others else first


def _explain_unknown_key(key: str, tool: str, config_dir: Path) -> str:
    """Name the key and the settings that look like it."""
    key = key.partition("@")[0]
    overrides = [word for word in sys.argv[1:] if "=" in word and not word.startswith("-")]
    others = [word for word in overrides if not word.lstrip("+~").startswith(key)]
    known = _known_keys(tool, config_dir, others)
    near = difflib.get_close_matches(key, known, n=3, cutoff=0.7)
    last = key.rpartition(".")[2]
    same_last = {name for name in known if name.rpartition(".")[2] == last}
    lasts = {name.rpartition(".")[2] for name in known}
    for similar in difflib.get_close_matches(last, lasts, n=2, cutoff=0.75):
        same_last |= {name for name in known if name.rpartition(".")[2] == similar}
    candidates = [name for name in dict.fromkeys([*near, *sorted(same_last)]) if name != key][:4]
    message = f"unknown config key {key!r}"
    if candidates:
        message += "; did you mean " + " or ".join(candidates) + "?"
    return f"{message}\n`detector {tool} --help` lists every key"


def _known_keys(tool: str, config_dir: Path, overrides: list[str]) -> list[str]:
    groups = [folder.name for folder in config_dir.iterdir() if folder.is_dir()]
    for choice in (overrides, []):  # another override may be wrong too
        GlobalHydra.instance().clear()
        try:
            with hydra.initialize_config_dir(str(config_dir), version_base="1.3"):
                config = hydra.compose(tool, choice)
            return [*dict.fromkeys([*groups, *_keys(OmegaConf.to_container(config), "")])]
        except (HydraException, OmegaConfBaseException):
            continue
    return groups


def _keys(node: object, prefix: str) -> Iterator[str]:
    if isinstance(node, dict):
        for name, child in node.items():
            yield f"{prefix}{name}"
            yield from _keys(child, f"{prefix}{name}.")


if __name__ == "__main__":
    main()
