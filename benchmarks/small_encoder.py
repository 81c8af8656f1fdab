"""Train one of the small image encoders without labels, and write its weights.

    olivine synth --seed 770001 --scenes 10 --frames 6 --out data/encoder-streets
    python benchmarks/small_encoder.py data/encoder-streets
    python benchmarks/small_encoder.py data/encoder-streets --encoder small-vit

Two random crops of an image, each with its own flip and colours, show some of the same places. At places that both
show, features are pulled together, while the variance of each feature over all places is kept up and features are
decorrelated (VICReg, Bardes et al., 2022, applied to single places). No class label is read: only the images.
The streets' seed is used by nothing else in the project.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import typer
from torch import Tensor, nn

from olivine.common import OlivineError, track
from olivine.common.images import open_image
from olivine.common.tensors import write_tensors
from olivine.train.encoder import Encoder, find_encoder
from olivine.train.feature_map import FeatureGrid, sample_features


@dataclass(frozen=True)
class EncoderTraining:
    """Settings.

    Attributes:
        steps, batch: images per step.
        places: places compared per image.
        height, width: of a crop in pixels.
        area: least and largest share of the image that a crop covers along either side, squared.
        colour: strength of the colour changes; ``grey`` the share of crops without colour.
        grid: where features lie in a crop; see :func:`~olivine.train.feature_map.sample_features`.
        projection: width of the projector, which is thrown away afterwards.
        invariance, variance, covariance: weights of VICReg's three terms.
    """

    steps: int = 450
    batch: int = 12
    places: int = 96
    height: int = 80
    width: int = 144
    area: tuple[float, float] = (0.35, 1.0)
    colour: float = 0.1
    grey: float = 0.0
    lr: float = 2e-3
    weight_decay: float = 1e-4
    projection: int = 256
    invariance: float = 25.0
    variance: float = 25.0
    covariance: float = 1.0
    grid: FeatureGrid = "align_corners"
    seed: int = 0


SETTINGS = {"small": EncoderTraining(), "small-vit": EncoderTraining(steps=1500, lr=1e-3, grid="patch")}
"""By encoder; the transformer has no local convolutions to start from, and takes longer."""


def read_images(folder: Path) -> Tensor:
    """Every JPEG under ``folder`` in the order of names, uint8 [N, 3, H, W].

    Raises:
        OlivineError: there is none, or they have several sizes.
    """
    files = sorted((folder / "samples").rglob("*.jpg")) or sorted(folder.rglob("*.jpg"))
    if not files:
        raise OlivineError("holds no JPEG", where=folder, remedy="make streets: olivine synth --seed 770001 …")
    images = []
    for file in files:
        with open_image(file, formats=("JPEG",)) as image:
            images.append(np.asarray(image.convert("RGB")))
    if len({image.shape for image in images}) > 1:
        raise OlivineError("images of several sizes", where=folder, remedy="give the folder of one synthetic set")
    return torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2)


@dataclass(frozen=True)
class View:
    """Crops of a batch of images: float32 [B, 3, h, w] in [0, 1], and boxes, flips for locating places.

    ``box`` is float32 [B, 4]: left, top, width, height as shares of the image; ``flipped`` bool [B].
    """

    image: Tensor
    box: Tensor
    flipped: Tensor

    def locate(self, place: Tensor) -> Tensor:
        """Places [B, M, 2] (shares of the image) as pixels (u, v) of the crop, [B, M, 2]."""
        h, w = self.image.shape[-2:]
        inside = (place - self.box[:, None, :2]) / self.box[:, None, 2:]
        mirrored = torch.stack([1 - inside[..., 0], inside[..., 1]], -1)
        inside = torch.where(self.flipped[:, None, None], mirrored, inside)
        return inside * torch.tensor([w, h]) - 0.5


def make_view(image: Tensor, center: Tensor, settings: EncoderTraining, generator: torch.Generator) -> View:
    """A random crop of each image that holds ``center`` [B, 2], flipped and recoloured at random."""
    count = len(image)

    def uniform(*shape: int, low: float = 0.0, high: float = 1.0) -> Tensor:
        return torch.rand(*shape, generator=generator) * (high - low) + low

    side = uniform(count, 2, low=settings.area[0], high=settings.area[1]).sqrt()
    corner = (center - side * uniform(count, 2)).clamp(min=torch.zeros(()), max=None)
    corner = torch.minimum(corner, 1 - side)
    flipped = torch.rand(count, generator=generator) < 0.5
    # Affine grid of each crop in [-1, 1]; the flip is a negative width.
    scale = torch.stack([torch.where(flipped, -side[:, 0], side[:, 0]), side[:, 1]], 1)
    theta = torch.zeros(count, 2, 3)
    theta[:, 0, 0], theta[:, 1, 1] = scale[:, 0], scale[:, 1]
    theta[:, :, 2] = 2 * corner + side - 1
    grid = nn.functional.affine_grid(theta, [count, 3, settings.height, settings.width], align_corners=False)
    crop = nn.functional.grid_sample(image.float() / 255, grid, align_corners=False, padding_mode="border")
    strength = settings.colour
    gain = uniform(count, 3, 1, 1, low=1 - strength / 2, high=1 + strength / 2)
    gain = gain * uniform(count, 1, 1, 1, low=1 - strength, high=1 + strength)
    shift = uniform(count, 1, 1, 1, low=-strength / 2, high=strength / 2)
    crop = (crop - 0.5) * gain + 0.5 + shift
    grey = (torch.rand(count, generator=generator) < settings.grey)[:, None, None, None]
    crop = torch.where(grey, crop.mean(1, keepdim=True).expand_as(crop), crop)
    return View(crop.clamp(0, 1), torch.cat([corner, side], 1), flipped)


def shared_places(a: View, b: View, count: int, generator: torch.Generator) -> Tensor:
    """Random places that both crops show, as shares of the image, [B, count, 2]."""
    low = torch.maximum(a.box[:, :2], b.box[:, :2])
    high = torch.minimum(a.box[:, :2] + a.box[:, 2:], b.box[:, :2] + b.box[:, 2:])
    return low[:, None] + torch.rand(len(low), count, 2, generator=generator) * (high - low)[:, None]


def vicreg(a: Tensor, b: Tensor, settings: EncoderTraining) -> Tensor:
    """Invariance, variance and covariance terms of two embeddings [N, D] of the same places."""
    invariance = (a - b).square().mean()
    spread, correlation = a.new_zeros(()), a.new_zeros(())
    for z in (a, b):
        z = z - z.mean(0)
        spread = spread + torch.relu(1 - (z.var(0) + 1e-4).sqrt()).mean()
        covariance = (z.T @ z) / (len(z) - 1)
        off_diagonal = covariance - torch.diag(covariance.diagonal())
        correlation = correlation + off_diagonal.square().sum() / z.shape[1]
    return settings.invariance * invariance + settings.variance * spread / 2 + settings.covariance * correlation


def train_encoder(images: Tensor, kind: type[Encoder], settings: EncoderTraining) -> tuple[Encoder, list[float]]:
    """Train on images uint8 [N, 3, H, W]; returns the encoder in evaluation mode and the loss of each step."""
    generator = torch.Generator().manual_seed(settings.seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(settings.seed)
        encoder = kind()
        width = settings.projection
        projector = nn.Sequential(
            nn.Linear(encoder.channels, width), nn.BatchNorm1d(width), nn.ReLU(), nn.Linear(width, width)
        )
    parameters = [*encoder.parameters(), *projector.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=settings.lr, weight_decay=settings.weight_decay)
    mean, std = (torch.tensor(x).view(1, 3, 1, 1) for x in (encoder.mean, encoder.std))
    size = (settings.height, settings.width)
    losses = []
    for step in track(range(settings.steps), "encoder", unit="step"):
        for group in optimizer.param_groups:
            rise = min(1.0, (step + 1) / (0.05 * settings.steps))
            group["lr"] = settings.lr * rise * 0.5 * (1 + math.cos(math.pi * step / settings.steps))
        chosen = torch.randint(0, len(images), (settings.batch,), generator=generator)
        some = images.index_select(0, chosen)
        center = torch.rand(settings.batch, 2, generator=generator)
        views = [make_view(some, center, settings, generator) for _ in range(2)]
        place = shared_places(views[0], views[1], settings.places, generator)
        crops = torch.cat([view.image for view in views])
        features = encoder(((crops - mean) / std).to(memory_format=torch.channels_last))
        pixel = torch.cat([view.locate(place) for view in views]).flatten(0, 1)
        index = torch.arange(2 * settings.batch).repeat_interleave(settings.places)
        embedded = projector(sample_features(features, index, pixel, size, settings.grid))
        first, second = embedded.chunk(2)
        loss = vicreg(first, second, settings)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return encoder.eval(), losses


def save_encoder(encoder: Encoder, path: Path) -> None:
    """Write the weights in half precision, without the counters that only training needs."""
    state = {
        name: value.half() for name, value in encoder.state_dict().items() if not name.endswith("num_batches_tracked")
    }
    write_tensors(path, state)


def main(
    streets: Annotated[Path, typer.Argument(help="Folder of a synthetic data set made with a seed of its own.")],
    encoder: Annotated[str, typer.Option("--encoder", help="small, or small-vit.")] = "small",
    out: Annotated[Path | None, typer.Option(help="The weights file (default: the package's).")] = None,
    steps: Annotated[int | None, typer.Option(help="Steps of training.")] = None,
) -> None:
    """Train a small image encoder on the images of a folder; some minutes on two cores."""
    kind, settings = find_encoder(encoder), SETTINGS[encoder]
    settings = replace(settings, steps=steps or settings.steps)
    images, out = read_images(streets), out or kind.bundled
    assert out is not None
    network, losses = train_encoder(images, kind, settings)
    save_encoder(network, out)
    typer.echo(
        f"{len(images)} images, {settings.steps} steps, loss {losses[0]:.2f} → {losses[-1]:.2f}; "
        f"{out}: {out.stat().st_size:,} bytes"
    )


if __name__ == "__main__":
    typer.run(main)
