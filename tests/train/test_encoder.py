"""Promises of the frozen image encoders."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from olivine.common import OlivineError
from olivine.common.plugins import names_in
from olivine.train.encoder import ImageEncoder, find_encoder
from olivine.train.encoders._resnet import dilate_to_stride_4
from olivine.train.encoders.small import SmallEncoder
from olivine.train.feature_map import features_at_pixels, sample_features


def scrambled(network: nn.Module, seed: int = 0) -> nn.Module:
    """Random weights and running statistics, so that batch norms do something."""
    generator = torch.Generator().manual_seed(seed)
    for name, value in network.state_dict().items():
        if name.endswith("running_var") or (value.ndim == 1 and name.endswith("weight")):
            value.copy_(torch.rand(value.shape, generator=generator) * 0.5 + 0.75)
        elif value.ndim == 1:
            value.copy_(torch.randn(value.shape, generator=generator) * 0.1)
    return network.eval()


def random_image(n: int = 1, h: int = 32, w: int = 48) -> torch.Tensor:
    return torch.randint(0, 256, (n, h, w, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))


def of_torchvision(name: str, **options: object) -> nn.Module:
    import torchvision  # takes a second or two, and only some of the processes that collect this file run it

    network: nn.Module = getattr(torchvision.models, name)(**options)
    return network


def test_dilation_is_torchvisions_own() -> None:
    theirs = scrambled(of_torchvision("resnet50", replace_stride_with_dilation=[True, True, True]))
    ours = find_encoder("resnet50")()
    ours.load_state_dict({n: v for n, v in theirs.state_dict().items() if not n.startswith("fc.")})
    ours.eval()
    x = torch.randn(1, 3, 40, 56, generator=torch.Generator().manual_seed(2))
    features = {}
    theirs.layer4.register_forward_hook(lambda m, i, o: features.update(out=o))
    with torch.no_grad():
        theirs(x)
        found = ours(x)
    assert found.shape == (1, 2048, 10, 14)
    torch.testing.assert_close(found, features["out"], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    "container",
    ["torchvision", "moco", "swav", "dino", "numpy scalars"],
)
def test_the_usual_containers_load_and_folding_changes_nothing(container: str, tmp_path: Path) -> None:
    source = scrambled(of_torchvision("resnet18"))
    state = source.state_dict()
    body = {name: value for name, value in state.items() if not name.startswith("fc.")}
    file = {
        "torchvision": state,
        "moco": {
            "epoch": 800,
            "arch": "resnet50",
            "state_dict": {
                **{f"module.encoder_q.{n}": v for n, v in body.items()},
                "module.encoder_q.fc.0.weight": torch.zeros(8, 8),
                **{f"module.encoder_k.{n}": v * 0 for n, v in body.items()},
                "module.queue": torch.zeros(4, 4),
            },
        },
        "swav": {**{f"module.{n}": v for n, v in body.items()}, "module.prototypes.weight": torch.zeros(4, 4)},
        "dino": {
            "student": {f"module.backbone.{n}": v * 0 for n, v in body.items()},
            "teacher": {f"backbone.{n}": v for n, v in body.items()},
        },
        "numpy scalars": {"best": np.float64(3.0), "state_dict": {f"module.encoder_q.{n}": v for n, v in body.items()}},
    }[container]
    torch.save(file, tmp_path / "weights.pth")
    encoder = ImageEncoder("resnet18", tmp_path / "weights.pth")
    assert not any(isinstance(m, nn.BatchNorm2d) for m in encoder.modules())
    image = random_image()
    mean, std = torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1), torch.tensor([0.229, 0.224, 0.225]).view(3, 1, 1)
    dilate_to_stride_4(source)
    features = {}
    source.layer4.register_forward_hook(lambda m, i, o: features.update(out=o))
    with torch.no_grad():
        source((image.permute(0, 3, 1, 2) / 255 - mean) / std)
    expected = features["out"]
    torch.testing.assert_close(encoder(image), expected, rtol=1e-3, atol=1e-3)
    assert len(encoder.digest) == 64


def test_the_encoder_never_trains(tmp_path: Path) -> None:
    encoder = ImageEncoder("small", "random").train()
    assert not encoder.training and not any(p.requires_grad for p in encoder.parameters())
    assert encoder(random_image()).shape == (1, 64, 8, 12)
    assert not encoder(random_image()).requires_grad


def test_random_weights_are_the_same_ones_whatever_was_drawn_before() -> None:
    """Their digest is one word: maps that were stored of them, and a run that goes on, must mean the same network."""
    image, first = random_image(), ImageEncoder("small", "random")
    state = torch.random.get_rng_state()
    assert torch.equal(ImageEncoder("small", "random")(image), first(image))
    assert torch.equal(torch.random.get_rng_state(), state)
    torch.rand(1)
    assert torch.equal(ImageEncoder("small", "random")(image), first(image))


@pytest.mark.parametrize("name", ["small", "small-vit"])
def test_the_small_encoders_weights_are_in_the_package_and_small(name: str) -> None:
    assert find_encoder(name).bundled.stat().st_size < 1_000_000
    assert ImageEncoder(name)(random_image()).isfinite().all()


OWN = """
import torch
from olivine.train.encoder import Encoder

class Mean(Encoder):
    channels, stride, multiple = 3, 8, 8
    mean, std = (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)

    def __init__(self):
        super().__init__()
        self.gain = torch.nn.Parameter(torch.ones(1))

    def forward(self, x):
        return torch.nn.functional.avg_pool2d(x, 8) * self.gain

class Wrong(Mean):
    channels = 4
"""


@pytest.fixture
def outside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A module with two encoders outside the package."""
    (tmp_path / "lab").mkdir()
    (tmp_path / "lab" / "own_encoders.py").write_text(OWN)
    (tmp_path / "lab" / "broken.py").write_text("import a_package_that_is_not_there")
    monkeypatch.syspath_prepend(tmp_path)
    return tmp_path


def test_encoders_are_found_by_their_files_and_outside_by_a_dotted_path(outside: Path) -> None:
    vits = [
        f"dinov{family}-vit{size}"
        for family, patch in ((2, 14), (3, 16))
        for size in (f"b{patch}", f"l{patch}", f"s{patch}")
    ]
    assert names_in("olivine.train.encoders") == [*vits, "resnet18", "resnet50", "small", "small-vit"]
    assert find_encoder("small") is SmallEncoder
    torch.save({"gain": torch.full((1,), 2.0)}, outside / "gain.pth")
    image = random_image()
    found = ImageEncoder("lab.own_encoders:Mean", outside / "gain.pth")(image)
    blocks = image.double().view(4, 8, 6, 8, 3).mean((1, 3)).permute(2, 0, 1)[None]
    torch.testing.assert_close(found.double(), 2 * blocks / 255, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("resnet51", r"no image encoder 'resnet51'\. Did you mean 'resnet(50|18)'"),
        ("smal", "did you mean 'small'"),
        ("_resnet", "no image encoder '_resnet'"),
        ("lab.own_encoder", "cannot be imported.*No module named.*PYTHONPATH"),
        ("lab.broken", "cannot be imported.*a_package_that_is_not_there"),
        ("lab.own_encoders", "holds 2 image encoders.*own_encoders:Class"),
        ("lab.own_encoders:Median", "Median: lab.own_encoders holds 0 image encoders"),
    ],
)
def test_an_encoder_that_is_not_there_is_refused_in_one_line(name: str, message: str, outside: Path) -> None:
    with pytest.raises(OlivineError, match=f"(?i){message}") as refused:
        ImageEncoder(name, "random")
    assert "\n" not in str(refused.value)


def test_an_encoder_is_held_to_what_it_declares(outside: Path) -> None:
    with pytest.raises(OlivineError, match=r"multiples of 8, not 30 x 48.*image\.height=32 --set image\.width=48"):
        ImageEncoder("lab.own_encoders:Mean", "random")(random_image(h=30))
    with pytest.raises(OlivineError, match=r"declares features \[1, 4, 4, 6\] and gives \[1, 3, 4, 6\]"):
        ImageEncoder("lab.own_encoders:Wrong", "random")(random_image())


def test_bad_weights_are_refused_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(OlivineError, match=r"needs a weights file.*image\.weights=FILE"):
        ImageEncoder("resnet50")
    with pytest.raises(OlivineError, match="no such file"):
        ImageEncoder("resnet18", tmp_path / "absent.pth")
    torch.save(of_torchvision("resnet18").state_dict(), tmp_path / "18.pth")
    with pytest.raises(OlivineError, match=r"another network's tensors: 165 missing.*Give weights of resnet50"):
        ImageEncoder("resnet50", tmp_path / "18.pth")
    (tmp_path / "cut.pth").write_bytes((tmp_path / "18.pth").read_bytes()[:1000])
    with pytest.raises(OlivineError, match=r"cut\.pth"):
        ImageEncoder("resnet18", tmp_path / "cut.pth")
    torch.save({"model": nn.Linear(2, 2)}, tmp_path / "code.pth")
    with pytest.raises(OlivineError, match="more than tensors"):
        ImageEncoder("resnet18", tmp_path / "code.pth")


@pytest.mark.parametrize("at_once", [0, 1, 3])
def test_features_at_pixels_are_those_of_the_maps_whatever_the_number_of_images_at_once(at_once: int) -> None:
    encoder, image = ImageEncoder("small"), random_image(n=5)
    generator = torch.Generator().manual_seed(4)
    index = torch.randint(0, 5, (60,), generator=generator)
    index[index == 2] = 3  # an image without a pixel
    uv = torch.rand(60, 2, generator=generator) * torch.tensor([47.0, 31.0])

    def maps(rows: torch.Tensor) -> torch.Tensor:
        return encoder(image.index_select(0, rows))

    found = features_at_pixels(maps, 64, (32, 48), index, uv, "align_corners", at_once)
    torch.testing.assert_close(found, sample_features(encoder(image), index, uv, (32, 48)), rtol=1e-4, atol=1e-4)
    assert features_at_pixels(maps, 64, (32, 48), index[:0], uv[:0], "stride", at_once).shape == (0, 64)


def test_half_precision_is_close_and_comes_out_in_single() -> None:
    single, half = ImageEncoder("small"), ImageEncoder("small", dtype=torch.bfloat16)
    image = random_image(n=2)
    index, uv = torch.tensor([0, 1, 1]), torch.tensor([[3.0, 4.0], [20.0, 9.0], [47.0, 31.0]])
    a, b = (
        features_at_pixels(lambda rows, e=encoder: e(image[rows]), 64, (32, 48), index, uv, "align_corners")
        for encoder in (single, half)
    )
    assert b.dtype == torch.float32
    assert torch.nn.functional.cosine_similarity(a, b).min() > 0.99


@contextmanager
def compiling(folder: Path, monkeypatch: pytest.MonkeyPatch, **changes: object) -> Iterator[None]:
    """torch's compiler in this process, with nothing kept from before."""
    from torch._inductor import config

    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(folder))
    with config.patch(compile_threads=1, **changes):
        yield
    torch._dynamo.reset()


@pytest.mark.soak
def test_a_compiled_encoder_gives_the_same_features_for_any_number_of_images(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = torch.randint(0, 255, (3, 32, 48, 3), dtype=torch.uint8)
    plain, compiled = ImageEncoder("small"), ImageEncoder("small", compiled=True)
    assert set(plain.state_dict()) == set(compiled.state_dict())
    with compiling(tmp_path, monkeypatch):
        for count in (3, 2, 1):
            torch.testing.assert_close(compiled(images[:count]), plain(images[:count]), rtol=1e-5, atol=1e-5)


def test_without_a_compiler_one_line_names_the_setting(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    encoder = ImageEncoder("small", compiled=True)
    with compiling(tmp_path, monkeypatch, **{"cpp.cxx": (None, "/no/such/compiler")}):
        with pytest.raises(OlivineError, match=r"image\.compile: torch cannot compile the small encoder") as error:
            encoder(torch.zeros(1, 32, 48, 3, dtype=torch.uint8))
    assert "\n" not in str(error.value)
