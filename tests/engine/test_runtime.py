"""What ``runtime=auto`` picks. The GPUs here are names: only what is decided by them is tested."""

import pytest
import torch
from hydra import compose, initialize_config_dir

from detector.engine import assembly
from detector.engine.runtime import Runtime
from tests.engine.toy_training import CONFIGS


def auto(*overrides: str) -> Runtime:
    with initialize_config_dir(str(CONFIGS), version_base="1.3"):
        # Without a recipe, which would override the group.
        words = ["runtime=auto", "experiment=mask_rcnn_r50_fpn_1x", *overrides]
        return assembly.build(compose("train", words).runtime)


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch):
    """Has torch believe in a GPU of a compute capability."""

    def pretend(capability: tuple[int, int]) -> None:
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda *_: "Some GPU")
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda *_: capability)
        monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda **options: capability >= (8, 0))

    return pretend


@pytest.mark.parametrize("computes", [True, False])
def test_auto_on_a_cpu(computes: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: computes)
    runtime = auto()
    assert (runtime.device, runtime.channels_last, runtime.tf32) == ("cpu", True, False)
    assert (runtime.compile, runtime.graphs, runtime.tune_convolutions) == (False, 0, False)
    assert runtime.precision == ("bf16" if computes else "float32")
    said = ", ".join(runtime.choices)
    assert "device=cpu (torch sees no NVIDIA GPU)" in said
    assert f"precision={runtime.precision} (" in said and "channels_last=true (" in said


@pytest.mark.parametrize(
    ("capability", "precision", "tf32"), [((9, 0), "bf16", True), ((7, 5), "float32", False)]
)
def test_auto_on_a_gpu(capability, precision: str, tf32: bool, gpu) -> None:
    gpu(capability)
    runtime = auto()
    assert (runtime.device, runtime.precision) == ("cuda", precision)
    assert (runtime.tf32, runtime.channels_last) == (tf32, True)
    assert (runtime.compile, runtime.graphs, runtime.tune_convolutions) == (True, 8, True)
    assert "device=cuda (Some GPU)" in runtime.choices


def test_what_is_set_is_not_chosen(gpu) -> None:
    gpu((9, 0))
    runtime = auto("runtime.precision=float32", "runtime.tf32=false", "runtime.device=cpu")
    assert (runtime.device, runtime.precision, runtime.tf32) == ("cpu", "float32", False)
    assert not any(choice.startswith(("precision", "tf32", "device")) for choice in runtime.choices)


@pytest.mark.parametrize("tf32", [True, False, None])
def test_tf32_is_of_matrix_products_and_convolutions(
    tf32, gpu, monkeypatch: pytest.MonkeyPatch
) -> None:
    gpu((9, 0))
    numbers: list[int | None] = []
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: numbers.append(device.index))
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", True)
    before = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    try:
        Runtime("cuda", tf32=tf32).apply()
        matmul, convolution = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    finally:
        torch.set_float32_matmul_precision(before[0])
        torch.backends.cudnn.allow_tf32 = before[1]
    assert not torch.backends.cudnn.benchmark  # tune_convolutions
    assert numbers == [0], "torch refuses a GPU without its number"
    expected = {True: ("high", True), False: ("highest", False), None: before}
    assert (matmul, convolution) == expected[tf32]


def test_misuse_is_refused() -> None:
    with pytest.raises(ValueError, match=r"runtime\.tf32=maybe: choose true, false or auto"):
        Runtime("cpu", tf32="maybe")
    with pytest.raises(ValueError, match=r"runtime\.compile=yes: choose true, false or auto"):
        Runtime("cpu", compile="yes")
    for graphs in (-1, True, "many"):
        with pytest.raises(ValueError, match=rf"runtime\.graphs={graphs}: give how many .* 0 for"):
            Runtime("cpu", graphs=graphs)
    with pytest.raises(ValueError, match=r"runtime\.precision=half: choose auto"):
        Runtime("cpu", precision="half")
