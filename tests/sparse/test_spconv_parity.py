"""Parity with the forward pass of spconv 2 on a CPU, where it is installed (its wheel is 2.3.8)."""

from __future__ import annotations

from contextlib import contextmanager

import numpy as np
import pytest
import torch

from olivine.downstream.layouts import to_openpcdet
from olivine.train.backbones import build_backbone
from olivine.train.settings import load_settings
from olivine.train.sparse import Conv3d, SparseTensor
from olivine.train.voxelize import voxelize

try:
    import spconv.pytorch as spconv
except ImportError as error:
    spconv, REASON = None, f"spconv is not installed ({error})"
else:
    REASON = ""

pytestmark = [pytest.mark.soak, pytest.mark.skipif(spconv is None, reason=REASON)]


def grid_cloud(seed: int, channels: int, shape=(24, 20, 40), count: int = 900) -> SparseTensor:
    generator = torch.Generator().manual_seed(seed)
    place = torch.stack([torch.randint(0, n, (count,), generator=generator) for n in (3, *shape)], 1)
    coordinate = torch.unique(place, dim=0).int()
    return SparseTensor(torch.randn(len(coordinate), channels, generator=generator), coordinate, shape=shape)


def as_spconv(tensor: SparseTensor):
    zyx = tensor.coordinate[:, [0, 3, 2, 1]].contiguous()
    return spconv.SparseConvTensor(tensor.feature, zyx, list(tensor.shape)[::-1], tensor.batch_size)


def dense(tensor) -> torch.Tensor:
    """[B, C, Z, Y, X], of either package's tensor."""
    if isinstance(tensor, SparseTensor):
        from olivine.train.sparse import to_dense

        return to_dense(tensor).permute(0, 1, 4, 3, 2)
    return tensor.dense()


@contextmanager
def one_thread():
    """On several threads spconv 2.3.8's CPU results change from call to call, and leave torch's dense convolution."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def apart(a: torch.Tensor, b: torch.Tensor) -> float:
    return float((a.double() - b.double()).norm() / b.double().norm())


# kernel, stride, padding along (z, y, x) as OpenPCDet writes them; None: submanifold.
LAYERS = [
    (4, 16, (3, 3, 3), None, None),
    (16, 32, (3, 3, 3), (2, 2, 2), (1, 1, 1)),
    (64, 64, (3, 3, 3), (2, 2, 2), (0, 1, 1)),
    (64, 128, (3, 1, 1), (2, 1, 1), (0, 0, 0)),
    (128, 64, (1, 1, 1), None, None),
]


@pytest.mark.parametrize(("inputs", "outputs", "kernel", "stride", "padding"), LAYERS)
def test_every_layer_type_of_voxelnet_is_spconvs(inputs, outputs, kernel, stride, padding):
    cloud = grid_cloud(1, inputs)
    if stride is None:
        ours = Conv3d(inputs, outputs, kernel[::-1])
        theirs = spconv.SubMConv3d(inputs, outputs, kernel, bias=False, indice_key="s")
    else:
        ours = Conv3d(inputs, outputs, kernel[::-1], stride[::-1], padding=padding[::-1])
        theirs = spconv.SparseConv3d(inputs, outputs, kernel, stride=stride, padding=padding, bias=False)
    with torch.no_grad():
        unfolded = ours.kernel.view(*kernel, inputs, outputs).permute(4, 0, 1, 2, 3)
        if kernel == (1, 1, 1):
            # spconv shapes this weight [out, 1, 1, 1, in] and reads its memory as [in, out].
            theirs.weight.view(inputs, outputs).copy_(ours.kernel)
        else:
            theirs.weight.copy_(unfolded)
        out = ours(cloud)
        with one_thread():
            expected = theirs(as_spconv(cloud))
    assert len(out) == len(expected.features)
    assert apart(dense(out), dense(expected)) < 1e-4


def spconv_backbone(residual: bool) -> torch.nn.Module:
    """The two trunks from their published description, in spconv's modules with OpenPCDet's names."""
    nn = torch.nn

    def norm(channels):
        return nn.BatchNorm1d(channels, eps=1e-3, momentum=0.01)

    def block(i, o, key, padding=None):
        if padding is None:
            conv = spconv.SubMConv3d(i, o, 3, bias=False, indice_key=key)
        else:
            conv = spconv.SparseConv3d(i, o, 3, stride=2, padding=padding, bias=False)
        return spconv.SparseSequential(conv, norm(o), nn.ReLU())

    class Residual(spconv.SparseModule):
        def __init__(self, channels, key):
            super().__init__()
            self.conv1 = spconv.SubMConv3d(channels, channels, 3, padding=1, bias=True, indice_key=key)
            self.bn1 = norm(channels)
            self.conv2 = spconv.SubMConv3d(channels, channels, 3, padding=1, bias=True, indice_key=key)
            self.bn2 = norm(channels)

        def forward(self, x):
            out = self.conv1(x)
            out = out.replace_feature(torch.relu(self.bn1(out.features)))
            out = self.conv2(out)
            return out.replace_feature(torch.relu(self.bn2(out.features) + x.features))

    def level(i, o, key, padding):
        rest = [Residual(o, key) if residual else block(o, o, key) for _ in range(2)]
        return spconv.SparseSequential(block(i, o, None, padding), *rest)

    top = 128 if residual else 64
    net = nn.ModuleDict()
    net["conv_input"] = spconv.SparseSequential(
        spconv.SubMConv3d(4, 16, 3, padding=1, bias=False, indice_key="1"), norm(16), nn.ReLU()
    )
    net["conv1"] = spconv.SparseSequential(
        *([Residual(16, "1"), Residual(16, "1")] if residual else [block(16, 16, "1")])
    )
    net["conv2"] = level(16, 32, "2", 1)
    net["conv3"] = level(32, 64, "3", 1)
    net["conv4"] = level(64, top, "4", (0, 1, 1))
    net["conv_out"] = spconv.SparseSequential(
        spconv.SparseConv3d(top, 128, (3, 1, 1), stride=(2, 1, 1), bias=False), norm(128), nn.ReLU()
    )
    return net


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("residual", [False, True])
def test_the_whole_trunk_is_spconvs_with_the_exported_weights(residual, training, nuscenes_keyframe):
    (file,) = (nuscenes_keyframe / "samples" / "LIDAR_TOP").glob("*.bin")
    points = torch.from_numpy(np.fromfile(file, np.float32).reshape(-1, 5)[:, :4].copy())
    points[:, 3] /= 255
    settings = load_settings("voxelnet").voxels
    voxels = voxelize(points, None, settings)
    tensor = SparseTensor(voxels.feature, voxels.coordinate, shape=settings.shape)
    ours = build_backbone("voxelnet", residual=residual).train(training)
    generator = torch.Generator().manual_seed(1)
    for name, value in ours.state_dict().items():
        if name.endswith(("running_var", "bn.weight")):
            value.copy_(0.5 + torch.rand(value.shape, generator=generator))
    theirs = spconv_backbone(residual).train(training)
    theirs.load_state_dict(to_openpcdet(ours), strict=True)
    for module in theirs.modules():
        # In evaluation it would fuse the bias, which only its GPU code can.
        if isinstance(module, spconv.SubMConv3d):
            module.train()
    with torch.no_grad():
        out, x = ours.features(tensor), as_spconv(tensor)
        with one_thread():
            for stage in theirs.values():
                x = stage(x)
    assert len(out) == len(x.features)
    assert apart(dense(out), dense(x)) < 1e-4
