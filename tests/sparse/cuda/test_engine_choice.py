"""Which engine computes, what is said of it, and what is refused in one line."""

from __future__ import annotations

import sys

import pytest
import torch

from olivine.common import OlivineError
from olivine.train.sparse import Conv3d, SparseTensor, engines, precision

GPU, CPU = torch.device("cuda", 0), torch.device("cpu")
COORDINATE = torch.tensor([[0, 0, 0, 0], [0, 0, 0, 1], [0, 1, 0, 1]], dtype=torch.int32)


@pytest.fixture
def gpu(monkeypatch):
    """What the driver would say of a GPU: its compute capability and name."""
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    engines._triton_problem.cache_clear()

    def make(capability: tuple[int, int], name: str) -> None:
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: capability)
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda device=None: name)

    yield make
    engines._triton_problem.cache_clear()


def test_auto_on_a_cpu_is_torch_with_the_same_bits_and_says_so(gpu):
    name, line = engines.choose_engine("auto", CPU)
    assert name == "torch"
    assert "CPU" in line
    layer, feature = Conv3d(16, 16, 3), torch.randn(3, 16)
    default, named = SparseTensor(feature, COORDINATE), SparseTensor(feature, COORDINATE, engine="torch")
    assert default.engine == named.engine == "torch"
    assert torch.equal(layer(default).feature, layer(named).feature)


@pytest.mark.parametrize("capability", [(8, 0), (8, 9), (9, 0), (10, 0), (12, 0)])
def test_auto_on_a_gpu_with_bfloat16_is_triton_and_names_the_gpu(gpu, capability):
    pytest.importorskip("triton")
    gpu(capability, "NVIDIA H100")
    name, line = engines.choose_engine("auto", GPU)
    assert name == "triton"
    assert "NVIDIA H100" in line


def test_a_gpu_without_bfloat16_keeps_the_general_path_and_is_refused_by_name(gpu):
    pytest.importorskip("triton")
    gpu((7, 5), "Tesla T4")
    name, line = engines.choose_engine("auto", GPU)
    assert name == "torch"
    assert "Tesla T4" in line
    with pytest.raises(OlivineError, match=r"Tesla T4 \(compute capability 7\.5\).*choose engine torch") as error:
        engines.choose_engine("triton", GPU)
    assert "\n" not in str(error.value)


def test_without_triton_the_general_path_stays_and_the_name_is_refused(gpu, monkeypatch):
    gpu((9, 0), "NVIDIA H100")
    monkeypatch.setitem(sys.modules, "triton", None)
    assert engines.choose_engine("auto", GPU)[0] == "torch"
    with pytest.raises(
        OlivineError, match=r"Triton cannot be imported.*pip install triton.*choose engine torch"
    ) as error:
        engines.choose_engine("triton", GPU)
    assert "\n" not in str(error.value)


def test_triton_by_name_on_a_cpu_is_refused_in_one_line(gpu):
    with pytest.raises(OlivineError, match="not on cpu; choose engine torch, or auto") as error:
        SparseTensor(torch.ones(3, 1), COORDINATE, engine="triton")
    assert "\n" not in str(error.value)


def test_pretrain_says_before_it_starts_which_engine_runs_and_refuses_one_that_cannot(gpu):
    from olivine.commands.train import _engine_of
    from olivine.train.settings import load_settings

    on_cpu = ["run.accelerator=cpu"]
    assert _engine_of(load_settings("cpu", on_cpu)).startswith("torch")
    with pytest.raises(OlivineError, match="engine triton: its kernels run on an NVIDIA GPU"):
        _engine_of(load_settings("cpu", [*on_cpu, "backbone.engine=triton"]))


def test_an_unknown_engine_names_those_that_are():
    with pytest.raises(OlivineError, match="Choose one of auto, torch, triton, minkowski"):
        SparseTensor(torch.ones(3, 1), COORDINATE, engine="spconv")


def test_float32_products_are_one_setting_for_every_product():
    before = precision.float32_products()
    flag = torch.backends.cuda.matmul.allow_tf32
    try:
        for setting, rounded in (("tf32", True), ("tf32x3", False), ("ieee", False)):
            precision.set_float32_products(setting)
            assert precision.float32_products() == setting
            assert torch.backends.cuda.matmul.allow_tf32 == rounded
        with pytest.raises(OlivineError, match="Choose one of ieee, tf32x3, tf32"):
            precision.set_float32_products("fp8")
    finally:
        precision.set_float32_products(before)
        torch.backends.cuda.matmul.allow_tf32 = flag


def test_a_run_sets_its_float32_products_and_puts_back_what_was():
    from olivine.train.devices import torch_state
    from olivine.train.settings import load_settings

    before = precision.float32_products(), torch.backends.cuda.matmul.allow_tf32
    with torch_state(load_settings("cpu", ["run.float32_products=tf32"]), CPU):
        assert precision.float32_products() == "tf32"
        assert torch.backends.cuda.matmul.allow_tf32
    assert (precision.float32_products(), torch.backends.cuda.matmul.allow_tf32) == before
    with pytest.raises(OlivineError, match=r"run\.float32_products"):
        load_settings("cpu", ["run.float32_products=fp8"])
