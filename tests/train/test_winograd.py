"""Promises of the frozen ResNet as matrix products and of its 3x3 convolutions."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision
from torch import nn

from olivine.train.frozen_resnet import FrozenResNet, available
from olivine.train.heads import sample_features
from olivine.train.image_encoder import KINDS, ImageEncoder, features_at_pixels
from olivine.train.winograd import KERNEL_SCALE, POINTS, Workspace, convolve, cut, transform_kernel
from olivine.train.winograd_loops import evaluate, interpolate

needs_vectors = pytest.mark.skipif(not available(), reason="only on CPUs with 512-bit vectors")


@pytest.mark.parametrize("outputs", [1, 2, 3, 4])
def test_the_transforms_are_those_of_polynomial_interpolation(outputs: int) -> None:
    # Toom and Cook: at each point q the Lagrange polynomial of the others; transposed, it evaluates the inputs.
    finite = np.array(POINTS[: outputs + 1])
    inputs, back = np.zeros((outputs + 2, outputs + 2)), np.zeros((outputs, outputs + 2))
    for n, q in enumerate(finite):
        inputs[n, :-1] = np.poly(np.delete(finite, n))[::-1] / np.prod(q - np.delete(finite, n)) / KERNEL_SCALE[n]
        back[:, n] = q ** np.arange(outputs)
    inputs[-1], back[-1, -1] = np.poly(finite)[::-1], 1
    unit, found = np.zeros((6, 64), np.float32), np.zeros((36, 64), np.float32)
    np.fill_diagonal(unit, 1)  # channel k holds the k-th unit vector
    evaluate(outputs, unit.reshape(-1), found.reshape(-1), 6)
    np.testing.assert_allclose(found[: 6 * outputs + 7 : 6, : outputs + 2], inputs, rtol=1e-6, atol=1e-6)
    interpolate(outputs, unit.reshape(-1), found.reshape(-1), 6)
    np.testing.assert_allclose(found[: 6 * outputs - 5 : 6, : outputs + 2], back, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(("height", "width", "dilation"), [(1, 1, 1), (7, 13, 8), (56, 104, 4), (10, 9, 2), (3, 50, 8)])
def test_the_tiles_hold_every_output_once(height: int, width: int, dilation: int) -> None:
    seen = np.zeros((height, width), int)
    for tiles in cut(height, width, dilation):
        for y, x in tiles.origin:
            seen[y : y + tiles.high * dilation : dilation, x : x + tiles.wide * dilation : dilation] += 1
    assert (seen == 1).all()


@pytest.mark.parametrize(
    ("size", "dilation", "inputs", "outputs"),
    [((9, 14), 1, 16, 32), ((7, 13), 2, 70, 5), ((15, 10), 4, 64, 64), ((20, 31), 8, 3, 130), ((2, 1), 1, 4, 4)],
)
def test_convolutions_are_torchs_in_double_precision(
    size: tuple[int, int], dilation: int, inputs: int, outputs: int
) -> None:
    generator = torch.Generator().manual_seed(inputs)
    source = torch.randn(size[0] * size[1] + 1, inputs, generator=generator)
    weight = torch.randn(outputs, inputs, 3, 3, generator=generator) / (9 * inputs) ** 0.5
    before, after = torch.randn(inputs, generator=generator), torch.randn(outputs, generator=generator)
    x = torch.relu(source[:-1] + before).double().T.reshape(1, inputs, *size)
    expected = torch.relu(nn.functional.conv2d(x, weight.double(), after.double(), 1, dilation, dilation))
    found, workspace = torch.empty(size[0] * size[1], outputs), Workspace()
    for _ in range(2):  # the second time in memory that holds something
        convolve(source, before, transform_kernel(weight), after, found, size, dilation, workspace)
        torch.testing.assert_close(found.double(), expected[0].flatten(1).T, rtol=0, atol=2e-5)


@pytest.fixture(scope="module")
def dilated(tmp_path_factory: pytest.TempPathFactory) -> tuple[nn.Module, Path]:
    """torchvision's own dilated ResNet-50 with statistics that do something, and its weights in a file."""
    torch.manual_seed(0)
    network = torchvision.models.resnet50(replace_stride_with_dilation=[True, True, True])
    for name, value in network.state_dict().items():
        if name.endswith("running_var") or (value.ndim == 1 and name.endswith("weight")):
            value.copy_(torch.rand(value.shape) * 0.5 + 0.75)
        elif value.ndim == 1:
            value.copy_(torch.randn(value.shape) * 0.1)
    path = tmp_path_factory.mktemp("weights") / "resnet50.pth"
    torch.save(network.state_dict(), path)
    return network.eval(), path


@pytest.fixture
def threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def theirs(network: nn.Module, image: torch.Tensor) -> torch.Tensor:
    spec, kept = KINDS["resnet50"], {}
    x = (image.permute(0, 3, 1, 2) / 255 - torch.tensor(spec.mean).view(3, 1, 1)) / torch.tensor(spec.std).view(3, 1, 1)
    handle = network.layer4.register_forward_hook(lambda m, i, o: kept.update(out=o))
    with torch.no_grad():
        network(x)
    handle.remove()
    return kept["out"]


@needs_vectors
def test_features_are_torchvisions_own_to_1e_4_and_the_same_bits_for_any_number_of_threads(
    dilated: tuple[nn.Module, Path], threads: None
) -> None:
    network, path = dilated
    generator = torch.Generator().manual_seed(1)
    image = torch.randint(0, 256, (3, 49, 70, 3), dtype=torch.uint8, generator=generator)
    encoder = ImageEncoder("resnet50", path)
    assert isinstance(encoder.matrices, FrozenResNet)
    expected = theirs(network, image)
    index = torch.randint(0, 3, (40,), generator=generator)
    index[index == 1] = 2  # a picture without a pixel
    uv = torch.rand(40, 2, generator=generator) * torch.tensor([69.0, 48.0])
    sampled = sample_features(expected, index, uv, (49, 70), "stride")
    first = []
    for count in (1, 2, 3):
        torch.set_num_threads(count)
        maps, rows = encoder(image), features_at_pixels(encoder, image, index, uv, "stride")
        assert torch.get_num_threads() == count
        assert maps.shape == expected.shape
        assert (maps - expected).abs().max() <= 1e-4 * expected.abs().max()
        assert (rows - sampled).abs().max() <= 1e-4 * sampled.abs().max()
        first = first or [maps, rows]
        # One pixel alone: the last blocks at few places, tiles that reach beyond them.
        alone = features_at_pixels(encoder, image, index[:1], uv[:1], "stride")
        assert (alone - sampled[:1]).abs().max() <= 1e-4 * sampled.abs().max()
        if count == 2:  # two pictures are asked for at pixels, three as maps
            assert torch.equal(rows, first[1])
        assert torch.equal(maps, first[0])


@needs_vectors
def test_other_encoders_other_types_and_a_switch_leave_the_network_as_it_is(
    dilated: tuple[nn.Module, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    from olivine.train.sparse import fused

    path = dilated[1]
    assert ImageEncoder("resnet50", path, dtype=torch.bfloat16).matrices is None
    assert ImageEncoder("resnet50", path, fold=False).matrices is None
    assert ImageEncoder("small").matrices is None
    encoder = ImageEncoder("resnet50", path)
    monkeypatch.setenv(fused.SWITCH, "0")
    fused.available.cache_clear()
    try:
        assert encoder.matrices is None
    finally:
        monkeypatch.undo()
        fused.available.cache_clear()
