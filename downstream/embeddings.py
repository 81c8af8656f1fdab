"""The numbers behind a paper's figures: similarity maps of a chosen point, and t-SNE, of a run and of random weights.

Figures 4 and 7 of OLIVINE. Embeddings are those of the run's point heads, and for images of its pixel heads; of a network
without heads the backbone's features, and then no image has any.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ..common import OlivineError, PathLike, track
from ..common.settings import settings_from_plain
from ..pairs.shards import ShardSet
from ..train.backbone import Backbone, Clouds, Features, build_backbone, unit_rows
from ..train.checkpoint import checkpoint_file, load_backbone, load_state
from ..train.decode import decode_crop
from ..train.encoder import ImageEncoder
from ..train.feature_map import sample_features
from ..train.settings import ImageSettings
from ..train.voxelize import VoxelSettings
from .checkpoints import takes_normalised
from .data import CloudExamples

_HEADS = {"point_head": "pixel_head", "category_point_head": "category_pixel_head"}
_FEW = 10  # points of a class in a frame, below which it is not chosen while another is


@dataclass(frozen=True)
class Space:
    """Where embeddings lie: a backbone, and its heads; without a point head they are the backbone's features.

    Attributes:
        name: as ``pre-trained, point head``.
    """

    name: str
    backbone: Backbone
    point_head: nn.Module | None = None
    pixel_head: nn.Linear | None = None

    def at_points(self, features: Features) -> Tensor:
        """Embeddings of every point, [N, p]; of those that the network does not see they mean nothing."""
        found = features.raw() if self.point_head is None else features.embed(self.point_head)
        return found[features.place]


class Embeddings:
    """A run's embeddings of the frames of some shards, and beside them those of random weights of the same network.

    Args:
        checkpoint: run folder or checkpoint file.
        features: ``heads``, or ``backbone`` for its features also where there are heads.
        seed: of the random weights.

    Attributes:
        spaces: of the run, one for each point head, and last that of random weights.
        no_images: why images have no embeddings; empty where they have.

    Raises:
        OlivineError: no such checkpoint, or a damaged one.
    """

    def __init__(self, checkpoint: PathLike, shards: ShardSet, features: str = "heads", seed: int = 0) -> None:
        if features not in ("heads", "backbone"):
            raise OlivineError(f"--features {features}", remedy="give heads or backbone")
        path = checkpoint_file(checkpoint)
        trained, content = load_backbone(path)
        random = build_backbone(**{**content["backbone"], "seed": seed})
        state = content.get("method_state", {}) if features == "heads" else {}
        spaces, generator = [], torch.Generator().manual_seed(seed)
        for point, pixel in _HEADS.items():
            if f"{point}.kernel" in state:
                name = point.replace("_", " ")
                spaces.append(Space(f"pre-trained, {name}", trained, *_heads(trained, state, point, pixel, path)))
        if spaces:
            heads = _heads(random, state, "point_head", "pixel_head", path, generator)
            spaces.append(Space("random weights, point head", random, *heads))
        else:
            spaces = [Space("pre-trained, backbone", trained), Space("random weights, backbone", random)]
        for network in (trained, random):
            network.eval().requires_grad_(False)
        self.spaces, self.shards = tuple(spaces), shards
        settings = content.get("settings", {})
        voxels = settings_from_plain(VoxelSettings, content.get("voxels") or settings["voxels"], str(path))
        self._clouds = CloudExamples(
            shards,
            voxels,
            torch.device("cpu"),
            per_point=trained.per_point,
            normalised=takes_normalised(content, path),
        )
        self._encoder: ImageEncoder | None = None
        self.no_images = ""
        if any(space.pixel_head is None for space in self.spaces):
            self.no_images = "no pixel head goes with these features"
        elif not shards.has_image:
            self.no_images = "the shards hold no images"
        else:
            self._open_encoder(settings_from_plain(ImageSettings, settings["image"], str(path)), content["encoder"])

    def _open_encoder(self, image: ImageSettings, trained_with: dict[str, Any]) -> None:
        self._image = image
        try:
            self._encoder = ImageEncoder(image.encoder, image.weights)
        except OlivineError as error:
            self.no_images = str(error)
            return
        known = trained_with.get("digest", self._encoder.digest)
        if known != self._encoder.digest:
            self.no_images = f"the {image.encoder} weights here (SHA-256 {self._encoder.digest[:12]}) are not the run's"

    @torch.no_grad()
    def of_points(self, frame: int) -> tuple[list[NDArray[np.float32]], NDArray[np.bool_]]:
        """Embeddings of a frame's points, float32 [N, p] for each space, and which points the network sees, bool [N]."""
        example = self._clouds.whole(frame)
        assert isinstance(example.inputs, Clouds)
        encoded = {id(s.backbone): s.backbone for s in self.spaces}
        features = {key: backbone.encode(example.inputs) for key, backbone in encoded.items()}
        found = [s.at_points(features[id(s.backbone)]).numpy() for s in self.spaces]
        return found, (example.inputs.voxels.inverse >= 0).numpy()

    @torch.no_grad()
    def of_image(self, frame: int, camera: int) -> tuple[NDArray[np.uint8], list[NDArray[np.float32]]]:
        """A camera's image as the encoder takes it, uint8 [H, W, 3], and its pixels' embeddings, float32 [H, W, p] each."""
        assert self._encoder is not None and not self.no_images
        record = self.shards.read(frame, ("image", "image_size"))
        height, width = self._image.height, self._image.width
        image = np.empty((height, width, 3), np.uint8)
        stored_width, stored_height = record.image_size[camera].tolist()
        decode_crop(record.image[camera], (0, 0, stored_width, stored_height), False, image)
        feature_map = self._encoder(torch.from_numpy(image)[None])
        v, u = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
        uv = torch.stack([u.flatten(), v.flatten()], 1)
        found = []
        for space in self.spaces:
            assert space.pixel_head is not None
            # The head first: it and the upsampling are linear, and a map of p channels is smaller.
            small = space.pixel_head(feature_map.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
            zero = torch.zeros(len(uv), dtype=torch.int64)
            value = sample_features(small, zero, uv, (height, width), self._image.feature_grid)
            found.append(value.reshape(height, width, -1).numpy())
        return image, found


def _heads(
    backbone: Backbone,
    state: dict[str, Tensor],
    point: str,
    pixel: str,
    path: PathLike,
    generator: torch.Generator | None = None,
) -> tuple[nn.Module, nn.Linear | None]:
    """The heads of those names in a method's state; with a generator the same with weights drawn from it."""

    def load(head: nn.Module, name: str) -> None:
        own = {key.removeprefix(f"{name}."): value for key, value in state.items() if key.startswith(f"{name}.")}
        load_state(head, own, path)

    point_head = backbone.new_head(state[f"{point}.kernel"].shape[1], generator or torch.Generator())
    pixel_head = None
    if generator is None:
        load(point_head, point)
    if f"{pixel}.weight" in state:
        outputs, inputs = state[f"{pixel}.weight"].shape
        pixel_head = nn.Linear(inputs, outputs)
        if generator is None:
            load(pixel_head, pixel)
        else:
            for value in pixel_head.parameters():
                nn.init.uniform_(value, -(inputs**-0.5), inputs**-0.5, generator=generator)
        pixel_head.requires_grad_(False)
    return point_head.requires_grad_(False), pixel_head


def class_of_points(shards: ShardSet, frame: int) -> NDArray[np.uint8]:
    """The class of each point of a frame, uint8 [N]: its true one where the shards have it, else its weak label, 0 = none."""
    truth = shards.point_label(frame)
    if truth is not None:
        return truth
    record = shards.read(frame, ("points", "pair_point", "pair_label"))
    label = np.zeros(len(record.points), np.uint8)
    label[record.pair_point] = record.pair_label
    return label


def class_names(shards: ShardSet) -> tuple[str, ...]:
    """The names of the classes 1..K that :func:`class_of_points` numbers."""
    return shards.point_classes if shards.has_point_label else shards.classes


def find_frame(shards: ShardSet, name: str | None) -> int:
    """The frame of a token, of a scene (its first), or of a number from 0; the first one without a name.

    Raises:
        OlivineError: there is none.
    """
    if name is None:
        return 0
    if name in shards.tokens:
        return shards.tokens.index(name)
    if name in shards.scenes:
        return shards.scenes[name].start
    if name.isdecimal() and int(name) < len(shards):
        return int(name)
    scenes = ", ".join(list(shards.scenes)[:3])
    raise OlivineError(
        f"no frame or scene {name!r}",
        where=shards.path,
        remedy=f"give a token, a scene ({scenes} …) or a number from 0 to {len(shards) - 1}",
    )


def choose_points(
    points: NDArray[np.float32], label: NDArray[np.uint8], seen: NDArray[np.bool_], count: int = 3
) -> list[int]:
    """Points of different classes, from the class with the fewest points to that with the most: of each the one at the
    median distance.

    Args:
        points: of a frame, float32 [N, 4].
        label: class of each point, uint8 [N], 0 = none.
        seen: which points may be chosen, bool [N].

    Raises:
        OlivineError: none of these has a class.
    """
    found = np.bincount(label[seen], minlength=256)
    found[0] = 0
    known = np.flatnonzero(found >= min(_FEW, found.max()))
    known = known[found[known] > 0]
    if not len(known):
        raise OlivineError("no point with a class is in reach", where="frame", remedy="name points with --point")
    known = known[np.argsort(found[known], kind="stable")]
    chosen = known[np.unique(np.linspace(0, len(known) - 1, count).round().astype(int))]
    distance = np.linalg.norm(points[:, :3], axis=1)
    rows = [np.flatnonzero(seen & (label == value)) for value in chosen]
    return [int(row[np.argsort(distance[row], kind="stable")[len(row) // 2]]) for row in rows]


@dataclass(frozen=True)
class SimilarityMap:
    """Cosine similarity of one point's embedding to everything in its frame.

    Attributes:
        token, point: which one.
        class_name: of the point, empty where it has none.
        points: the frame's, float32 [N, 4].
        label: class of each, uint8 [N], as :func:`class_of_points`.
        at_points: for each space, float32 [N]; NaN outside the network's range.
        camera: that sees the point, empty where there is no image.
        image: uint8 [H, W, 3], and ``pixel`` the point's place (u, v) in it.
        at_pixels: for each space, float32 [H, W].
    """

    token: str
    point: int
    class_name: str
    points: NDArray[np.float32]
    label: NDArray[np.uint8]
    at_points: dict[str, NDArray[np.float32]]
    camera: str = ""
    image: NDArray[np.uint8] | None = None
    pixel: tuple[float, float] = (0.0, 0.0)
    at_pixels: dict[str, NDArray[np.float32]] = field(default_factory=dict)


def similarity_maps(
    embeddings: Embeddings, frame: int = 0, chosen: Sequence[int] = (), count: int = 3
) -> list[SimilarityMap]:
    """Similarity maps of points of one frame.

    Args:
        chosen: rows of the frame's points; without them ``count`` of :func:`choose_points` that a camera sees.

    Raises:
        OlivineError: a point that the frame does not have, or outside the network's range.
    """
    shards = embeddings.shards
    record = shards.read(frame, ("points", "pair_point", "pair_camera", "pair_uv", "image_size"))
    points, token = record.points, shards.token(frame)
    for point in chosen:
        if not 0 <= point < len(points):
            raise OlivineError(
                f"no point {point}", where=f"frame {token}", remedy=f"give one from 0 to {len(points) - 1}"
            )
    found, inside = embeddings.of_points(frame)
    for point in chosen:
        if not inside[point]:
            raise OlivineError(
                f"point {point} is outside the network's range", where=f"frame {token}", remedy="give another point"
            )
    label, names = class_of_points(shards, frame), ("", *class_names(shards))
    seen = np.zeros(len(points), bool)
    seen[record.pair_point] = True
    maps = []
    for point in chosen or choose_points(points, label, seen & inside, count):
        at_points = {
            space.name: np.where(inside, _cosine(value, value[point]), np.float32(np.nan))
            for space, value in zip(embeddings.spaces, found)
        }
        image: dict[str, Any] = {}
        pairs = np.flatnonzero(record.pair_point == point)
        if len(pairs) and not embeddings.no_images:
            camera = int(record.pair_camera[pairs[0]])
            picture, pixels = embeddings.of_image(frame, camera)
            scale = np.array(picture.shape[1::-1]) / record.image_size[camera]
            u, v = (record.pair_uv[pairs[0]] + 0.5) * scale - 0.5
            at_pixels = {
                space.name: _cosine(value, mine[point]) for space, value, mine in zip(embeddings.spaces, pixels, found)
            }
            image = {"camera": shards.cameras[camera], "image": picture, "pixel": (float(u), float(v))}
            image["at_pixels"] = at_pixels
        maps.append(SimilarityMap(token, point, names[label[point]], points, label, at_points, **image))
    return maps


def _cosine(rows: NDArray[np.float32], one: NDArray[np.float32]) -> NDArray[np.float32]:
    flat = unit_rows(torch.from_numpy(rows.reshape(-1, rows.shape[-1])))
    unit = unit_rows(torch.from_numpy(one)[None])[0]
    return (flat @ unit).clamp(-1, 1).numpy().reshape(rows.shape[:-1])


@dataclass(frozen=True)
class Sample:
    """Points with a class, drawn from several frames, and where t-SNE puts them.

    Attributes:
        frame, point, label: of each, int64 [M].
        names: of the classes 1..K.
        frames: that were drawn from, of ``of_frames``.
        place: for each space, float32 [M, 2].
        perplexity, seed: of t-SNE.
    """

    frame: NDArray[np.int64]
    point: NDArray[np.int64]
    label: NDArray[np.int64]
    names: tuple[str, ...]
    frames: int
    of_frames: int
    place: dict[str, NDArray[np.float32]]
    perplexity: float
    seed: int

    @property
    def counts(self) -> dict[str, int]:
        """Points of each class that has any."""
        count = np.bincount(self.label, minlength=len(self.names) + 1)[1:]
        return {name: int(n) for name, n in zip(self.names, count) if n}


def embed_sample(embeddings: Embeddings, per_class: int = 200, frames: int = 20, seed: int = 0) -> Sample:
    """t-SNE of the unit embeddings of at most ``per_class`` points of each class, drawn from evenly spread frames.

    Args:
        frames: at most so many.
        seed: of the draw and of t-SNE.

    Raises:
        OlivineError: fewer than ten points with a class, or ``per_class`` is below 1.
    """
    if per_class < 1 or seed < 0:
        raise OlivineError(f"--per-class {per_class} --seed {seed}", remedy="give 1 or more points, and a seed from 0")
    shards, rng = embeddings.shards, np.random.default_rng(seed)
    chosen = np.unique(np.linspace(0, len(shards) - 1, min(frames, len(shards))).round().astype(int)).tolist()
    labels = [class_of_points(shards, frame) for frame in chosen]
    label = np.concatenate(labels).astype(np.int64)
    frame_of = np.repeat(chosen, [len(part) for part in labels])
    point_of = np.concatenate([np.arange(len(part)) for part in labels])
    drawn = []
    for value in np.unique(label[label > 0]):
        rows = np.flatnonzero(label == value)
        drawn.append(np.sort(rng.choice(rows, min(per_class, len(rows)), replace=False)))
    kept = np.sort(np.concatenate(drawn)) if drawn else np.zeros(0, np.int64)
    label, frame_of, point_of = label[kept], frame_of[kept], point_of[kept]
    inside = np.zeros(len(label), bool)
    parts: list[list[NDArray[np.float32]]] = [[] for _ in embeddings.spaces]
    for frame in track([f for f in chosen if (frame_of == f).any()], "embeddings", unit="frame"):
        found, reached = embeddings.of_points(frame)
        rows = np.flatnonzero(frame_of == frame)
        inside[rows] = reached[point_of[rows]]
        for part, value in zip(parts, found):
            part.append(value[point_of[rows[inside[rows]]]])
    count = int(inside.sum())
    if count < 10:
        raise OlivineError(
            f"{count} points with a class in {len(chosen)} frames, too few for t-SNE",
            where=shards.path,
            remedy="take shards with point labels, or with weak labels that are not all 0",
        )
    perplexity = min(30.0, (count - 1) / 3)
    place = {
        space.name: _tsne(unit_rows(torch.from_numpy(np.concatenate(part))).numpy(), perplexity, seed)
        for space, part in zip(track(embeddings.spaces, "t-SNE"), parts)
    }
    ours = label[inside], class_names(shards), len(chosen), len(shards), place, perplexity, seed
    return Sample(frame_of[inside], point_of[inside], *ours)


def _tsne(rows: NDArray[np.float32], perplexity: float, seed: int) -> NDArray[np.float32]:
    from sklearn.manifold import TSNE

    found: NDArray[np.float32] = TSNE(perplexity=perplexity, init="pca", random_state=seed).fit_transform(rows)
    return found
