"""Every kind of weights file, whole, damaged and hostile."""

import os
import pickle
from collections import OrderedDict

import numpy as np
import pytest
import safetensors.torch
import torch

from detector.interop.files import read_state


class RunsCode:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.system, (f"touch {self.path}",)


@pytest.fixture
def state():
    generator = torch.Generator().manual_seed(0)
    return {
        "conv.weight": torch.randn(4, 3, 3, 3, generator=generator),
        "bn.running_mean": torch.randn(4, generator=generator),
        "bn.num_batches_tracked": torch.tensor(7),
    }


def _write(path, state, extra):
    arrays = {name: value.numpy() for name, value in state.items()}
    if path.suffix == ".safetensors":
        safetensors.torch.save_file(state, path, {"author": "us"})
    elif path.name.startswith("legacy"):
        torch.save({"model": state, **extra}, path, _use_new_zipfile_serialization=False)
    elif path.suffix == ".pkl":
        path.write_bytes(pickle.dumps({"model": arrays, **extra}, 2))
    else:
        torch.save({"model": OrderedDict(state), **extra}, path)


@pytest.mark.parametrize("name", ["a.safetensors", "a.pth", "legacy.pth", "a.pkl", "pickle.pkl"])
def test_reads_whole_and_refuses_cut_files(name, state, tmp_path):
    path = tmp_path / name
    _write(path, state, {"author": "us", "iteration": 3})
    read = read_state(path)
    assert list(read.tensors) == list(state) or read.kind == "safetensors"
    assert read.tensors.keys() == state.keys()
    for key, value in state.items():
        assert read.tensors[key].dtype == value.dtype
        assert read.tensors[key].shape == value.shape
        assert torch.equal(read.tensors[key], value)
    assert read.metadata["author"] == "us"
    assert (
        read.kind == {".safetensors": "safetensors", ".pth": "torch", ".pkl": "pickle"}[path.suffix]
    )
    content = path.read_bytes()
    for length in {0, 1, 9, 40, len(content) // 2, len(content) - 1}:
        path.write_bytes(content[:length])
        with pytest.raises(ValueError, match=name):
            read_state(path)


def test_the_content_decides_and_not_the_name(state, tmp_path):
    torch.save(state, tmp_path / "weights.pkl")
    assert read_state(tmp_path / "weights.pkl").kind == "torch"
    content = pickle.dumps({"blobs": {"conv1_w": np.ones((2, 3), ">f4"), "weight_order": "x"}})
    (tmp_path / "weights.pth").write_bytes(content)
    read = read_state(tmp_path / "weights.pth")
    assert read.kind == "pickle"
    assert torch.equal(read.tensors["conv1_w"], torch.ones(2, 3))
    assert read.metadata == {"weight_order": "x"}


@pytest.mark.parametrize("protocol", [2, 4])
def test_code_is_refused_by_name_and_not_run(protocol, state, tmp_path):
    ran = tmp_path / "ran"
    path = tmp_path / "weights.pkl"
    path.write_bytes(pickle.dumps({"model": {}, "x": RunsCode(ran)}, protocol))
    with pytest.raises(ValueError, match=r"weights.pkl: refused.* use (posix|nt).system"):
        read_state(path)
    for zipped in (True, False):
        torch.save({**state, "x": RunsCode(ran)}, path, _use_new_zipfile_serialization=zipped)
        with pytest.raises(ValueError, match=r"weights.pkl: refused.* use (posix|nt).system"):
            read_state(path)
    torch.save(torch.nn.Linear(2, 2), path)
    with pytest.raises(ValueError, match=r"use torch.nn.modules.linear.Linear"):
        read_state(path)
    assert not ran.exists()


def test_other_files(tmp_path):
    path = tmp_path / "weights.pth"
    with pytest.raises(FileNotFoundError, match="no such weights file"):
        read_state(path)
    path.write_bytes(b"<!DOCTYPE html><html>")
    with pytest.raises(ValueError, match=r"begins with b'<!DOCTYPE"):
        read_state(path)
    path.write_bytes(b"version https://git-lfs.github.com/spec/v1")
    with pytest.raises(ValueError, match="neither safetensors nor"):
        read_state(path)
    torch.save([torch.ones(2)], path)
    with pytest.raises(ValueError, match="holds list, expected tensors by name"):
        read_state(path)
    torch.save({"step": 3}, path)
    with pytest.raises(ValueError, match="no tensors by name, but step"):
        read_state(path)
    np.savez(tmp_path / "arrays.npz", a=np.ones(2))
    with pytest.raises(ValueError, match=r"arrays.npz: not a readable weights file"):
        read_state(tmp_path / "arrays.npz")
