"""Token maps of DINOv2 and DINOv3 are those of Hugging Face's models, and lie where a token lies."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from olivine.common import OlivineError
from olivine.train.build import build_encoder
from olivine.train.checkpoint import load_checkpoint
from olivine.train.encoder import Encoder, ImageEncoder, find_encoder
from olivine.train.encoders._dinov2 import DINOv2
from olivine.train.encoders._dinov3 import DINOv3
from olivine.train.feature_map import FeatureGrid, sample_features
from olivine.train.loop import pretrain
from olivine.train.settings import PretrainSettings, load_settings

MEAN, STD = torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1), torch.tensor([0.229, 0.224, 0.225]).view(3, 1, 1)


class SmallV2(DINOv2):
    channels, depth, heads, positions = 48, 3, 3, 5


class SmallV3(DINOv3):
    channels, depth, heads = 48, 3, 3


class DeepV2(SmallV2):
    depth = 2


FAMILIES = {"dinov2": SmallV2, "dinov3": SmallV3}
HERE = "test_vit_encoders"


@pytest.fixture(autouse=True)
def named(monkeypatch: pytest.MonkeyPatch) -> None:
    """The small classes above can be named by a dotted path."""
    import sys

    monkeypatch.setitem(sys.modules, HERE, sys.modules[__name__])


def published(family: str, **changed: int) -> nn.Module:
    """Hugging Face's model at reduced size; random weights in which every parameter matters."""
    import transformers

    sizes = {"hidden_size": 48, "num_hidden_layers": 3, "num_attention_heads": 3} | changed
    if family == "dinov2":
        model = transformers.Dinov2Model(transformers.Dinov2Config(**sizes, image_size=70, patch_size=14))
    elif family == "dinov2 with registers":
        config = transformers.Dinov2WithRegistersConfig(**sizes, image_size=70, patch_size=14, num_register_tokens=4)
        model = transformers.Dinov2WithRegistersModel(config)
    else:
        config = transformers.DINOv3ViTConfig(**sizes, intermediate_size=192, num_register_tokens=4)
        model = transformers.DINOv3ViTModel(config)
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in model.parameters():
            scale = 0.3 if parameter.ndim > 1 else 0.5
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * scale + (parameter.ndim == 1) * 0.3)
    return model.eval()


def pictures(height: int, width: int) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randint(0, 256, (2, height, width, 3), dtype=torch.uint8, generator=generator)


@pytest.mark.parametrize(
    ("family", "size"),
    [("dinov2", (70, 70)), ("dinov2", (56, 112)), ("dinov2", (98, 84)), ("dinov3", (64, 64)), ("dinov3", (48, 112))],
)
def test_token_maps_are_the_packages_own_last_block_before_the_norm(
    family: str, size: tuple[int, int], tmp_path: Path
) -> None:
    theirs, kind = published(family), FAMILIES[family]
    theirs.save_pretrained(tmp_path)
    assert (tmp_path / "model.safetensors").is_file()
    ours = ImageEncoder(f"{HERE}:{kind.__name__}", tmp_path)
    image = pictures(*size)
    with torch.no_grad():
        normalised = (image.permute(0, 3, 1, 2) / 255 - MEAN) / STD
        if family == "dinov2":
            tokens = theirs(normalised, output_hidden_states=True).hidden_states[-1][:, 1:]
        else:  # what goes into its final norm, whatever the package's version records
            found = []
            theirs.norm.register_forward_hook(lambda module, given, out: found.append(given[0]))
            theirs(normalised)
            tokens = found[0][:, 5:]
    height, width = (side // kind.stride for side in size)
    expected = tokens.transpose(1, 2).unflatten(2, (height, width))
    assert expected.std() > 0.1
    assert (ours(image) - expected).abs().max() < 1e-5 * expected.std()


def test_the_publishers_own_names_are_read_too(tmp_path: Path) -> None:
    network = SmallV2()
    extra = {"mask_token": torch.zeros(1, 48), "norm.weight": torch.ones(48), "norm.bias": torch.zeros(48)}
    torch.save({**network.state_dict(), **extra}, tmp_path / "dinov2.pth")
    image = pictures(28, 42)
    with torch.no_grad():
        expected = network((image.permute(0, 3, 1, 2) / 255 - MEAN) / STD)
    found = ImageEncoder(f"{HERE}:SmallV2", tmp_path / "dinov2.pth")(image)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "family", "parameters"),
    [
        # Of a token map, counted by the package's own model without mask token and final norm.
        ("dinov2-vits14", "dinov2", {"hidden_size": 384, "num_hidden_layers": 12, "num_attention_heads": 6}),
        ("dinov2-vitb14", "dinov2", {"hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12}),
        ("dinov2-vitl14", "dinov2", {"hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16}),
        ("dinov3-vits16", "dinov3", {"hidden_size": 384, "num_hidden_layers": 12, "num_attention_heads": 6}),
        ("dinov3-vitb16", "dinov3", {"hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12}),
        ("dinov3-vitl16", "dinov3", {"hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16}),
    ],
)
def test_the_six_are_as_large_as_published(name: str, family: str, parameters: dict[str, int]) -> None:
    import transformers

    with torch.device("meta"):
        ours = find_encoder(name)()
        if family == "dinov2":
            theirs = transformers.Dinov2Model(transformers.Dinov2Config(**parameters, image_size=518, patch_size=14))
        else:
            size = {**parameters, "intermediate_size": 4 * parameters["hidden_size"], "num_register_tokens": 4}
            theirs = transformers.DINOv3ViTModel(transformers.DINOv3ViTConfig(**size))
    width = parameters["hidden_size"]
    zero_key_biases = width * parameters["num_hidden_layers"] if family == "dinov3" else 0
    count = sum(p.numel() for p in theirs.parameters()) - 3 * width + zero_key_biases
    assert sum(p.numel() for p in ours.parameters()) == count
    assert ours.channels == width and ours.heads == parameters["num_attention_heads"]


@pytest.mark.parametrize(
    ("given", "name", "message"),
    [
        ("dinov3", "SmallV2", r"another network's tensors: .* missing.*Give weights"),
        ("dinov2", "SmallV3", r"another network's tensors: .* missing.*Give weights"),
        ("dinov2", "DeepV2", r"another network's tensors: 0 missing, 14 unknown.*blocks\.2\."),
        ("dinov2 with registers", "SmallV2", r"another network's tensors: 0 missing, 1 unknown.*register_tokens"),
    ],
)
def test_a_checkpoint_of_another_architecture_is_refused(given: str, name: str, message: str, tmp_path: Path) -> None:
    published(given).save_pretrained(tmp_path)
    with pytest.raises(OlivineError, match=message) as refused:
        ImageEncoder(f"{HERE}:{name}", tmp_path / "model.safetensors")
    assert "\n" not in str(refused.value)


def test_another_width_is_refused_and_so_are_files_with_code_damaged_or_absent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    published("dinov2", hidden_size=24).save_pretrained(tmp_path / "narrow")
    with pytest.raises(OlivineError, match=r"of another shape"):
        ImageEncoder(f"{HERE}:SmallV2", tmp_path / "narrow")
    torch.save({"model": nn.Linear(2, 2)}, tmp_path / "pytorch_model.bin")
    with pytest.raises(OlivineError, match=r"pytorch_model\.bin: holds more than tensors"):
        ImageEncoder(f"{HERE}:SmallV2", tmp_path / "pytorch_model.bin")
    (tmp_path / "narrow" / "model.safetensors").write_bytes(b"\x08\0\0\0\0\0\0\0{}      garbage")
    with pytest.raises(OlivineError, match=r"model\.safetensors: cannot be read as safetensors"):
        ImageEncoder(f"{HERE}:SmallV2", tmp_path / "narrow")
    monkeypatch.setenv("OLIVINE_WEIGHTS", str(tmp_path))
    with pytest.raises(OlivineError, match=r"no such file\. Fetch it: olivine weights fetch dinov3-vits16$"):
        ImageEncoder("dinov3-vits16")


def test_a_fetched_file_is_found_without_being_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    published("dinov2").save_pretrained(tmp_path / "of-a-test")
    monkeypatch.setenv("OLIVINE_WEIGHTS", str(tmp_path))
    monkeypatch.setattr(SmallV2, "published", "of-a-test")
    named, found = (ImageEncoder(f"{HERE}:SmallV2", w) for w in (tmp_path / "of-a-test/model.safetensors", None))
    assert named.digest == found.digest


@pytest.mark.parametrize(
    ("name", "height", "width", "near"),
    [
        ("dinov2-vits14", 224, 416, "224 --set image.width=420"),
        ("dinov3-vits16", 225, 416, "224 --set image.width=416"),
    ],
)
def test_a_size_that_the_patch_does_not_divide_is_refused_before_the_run(
    name: str, height: int, width: int, near: str, small_settings: Callable[..., PretrainSettings]
) -> None:
    changes = f"image.encoder={name}", "image.weights=random", f"image.height={height}", f"image.width={width}"
    patch = name[-2:]
    with pytest.raises(OlivineError, match=rf"multiples of {patch}, not {height} x {width}.*image\.height={near}"):
        build_encoder(small_settings(Path("shards"), *changes), torch.device("cpu"))


def places(kind: type[DINOv2] | type[DINOv3]) -> ImageEncoder:
    """A teacher whose features are known functions of the pixel: a token is the mean of its patch's pixels."""
    encoder = ImageEncoder(f"{HERE}:{kind.__name__}", "random")
    network = encoder.network
    with torch.no_grad():
        for block in network.blocks:  # what the blocks add is scaled away
            block.ls1.gamma.zero_()
            block.ls2.gamma.zero_()
        network.patch_embed.proj.weight.zero_()
        network.patch_embed.proj.bias.zero_()
        for channel in (0, 1):
            network.patch_embed.proj.weight[channel, channel] = 1 / kind.stride**2
        if kind is SmallV2:
            network.pos_embed.zero_()
    return encoder


@pytest.mark.parametrize("kind", [SmallV2, SmallV3])
def test_patch_is_the_grid_of_tokens_to_a_tenth_of_a_pixel_and_align_corners_is_not(kind: type[Encoder]) -> None:
    patch = kind.stride
    height, width = 5 * patch, 9 * patch
    v, u = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    image = torch.stack([u, v, 0 * u], 2).to(torch.uint8)[None]
    feature_map = places(kind)(image)[:, :2] * STD[:2] * 255 + MEAN[:2] * 255  # the encoder's normalisation undone
    # Between the outer tokens' centres; beyond, every grid repeats the border's token.
    margin = (patch - 1) / 2
    generator = torch.Generator().manual_seed(5)
    low, high = torch.tensor([margin, margin]), torch.tensor([width - 1 - margin, height - 1 - margin])
    uv = low + torch.rand(500, 2, generator=generator) * (high - low)

    def error(grid: FeatureGrid) -> Tensor:
        found = sample_features(feature_map, torch.zeros(500, dtype=torch.int64), uv, (height, width), grid)
        return (found - uv).abs()

    assert error("patch").max() < 0.1
    assert 0.6 * margin < error("align_corners").max() <= margin
    assert error("stride").max() > 0.9 * margin
    # What align_corners gets wrong grows from the middle to the border, as (½ − place / side) · patch does.
    side = torch.tensor([width, height])
    wrong = sample_features(feature_map, torch.zeros(500, dtype=torch.int64), uv, (height, width), "align_corners") - uv
    scale = (side - patch) / (side - 1)
    torch.testing.assert_close(wrong, margin + uv * scale - uv, rtol=1e-3, atol=2e-2)


@pytest.mark.parametrize("preset", ["scalr", "olivine-dinov2"])
def test_a_preset_with_dinov2_trains_at_reduced_size(preset: str, small_shards: Path, tmp_path: Path) -> None:
    changes = [f"data.shards={small_shards}", f"image.encoder={HERE}:SmallV2", "image.weights=random"]
    changes += ["image.height=42", "image.width=70", "run.batch=2", "run.group=1", "run.steps=8", "run.accelerator=cpu"]
    changes += ["data.workers=0", "voxels.size_m=0.5", "optimizer.lr=0.01", "optimizer.schedule_per=step"]
    changes += {
        "scalr": ["backbone.depth=2", "backbone.channels=16", "optimizer.warmup=0"],
        "olivine-dinov2": ["backbone.name=srunet-small", "method.pairs=100", "augment.crop_min_pairs=50"],
    }[preset]
    torch.manual_seed(0)
    summary = pretrain(load_settings(preset, changes), tmp_path / "run")
    assert summary.step == 8 and summary.last_loss < summary.first_loss
    saved = load_checkpoint(tmp_path / "run")["settings"]
    assert (saved["method"]["name"], saved["backbone"]["name"], saved["image"]["feature_grid"]) == {
        "scalr": ("distil", "waffle-iron", "align_corners"),
        "olivine-dinov2": ("olivine", "srunet-small", "patch"),
    }[preset]
