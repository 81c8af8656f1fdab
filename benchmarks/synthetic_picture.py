"""The picture of the synthetic world in the README: images, exact masks, and the point cloud by class.

python benchmarks/synthetic_picture.py [--seed 0] [--scene 9] [--seconds 3.0] [--out docs/images/synthetic.jpg]
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from olivine.synthetic import nuscenes
from olivine.synthetic.capture import Capture, capture
from olivine.synthetic.kinds import CLASSES, KIND, PROMPT_OF_KIND
from olivine.synthetic.rig import nuscenes_rig
from olivine.synthetic.world import make_world

COLORS = np.array(
    [
        (70, 74, 84),  # nothing of the prompts
        (255, 140, 40),  # barrier
        (230, 60, 90),  # bicycle
        (255, 215, 60),  # bus
        (255, 158, 0),  # car
        (255, 90, 150),  # motorcycle
        (80, 130, 255),  # pedestrian
        (255, 70, 40),  # traffic cone
        (255, 99, 71),  # truck
        (0, 175, 165),  # road
        (130, 95, 160),  # sidewalk
        (150, 205, 90),  # terrain
        (50, 150, 60),  # vegetation
        (200, 190, 165),  # building
    ],
    np.uint8,
)
WIDTH = 1500
NAMES = ("CAM_FRONT_LEFT", "CAM_FRONT", "CAM_FRONT_RIGHT")


def cloud(shot: Capture, width: int, height: int) -> NDArray[np.uint8]:
    """The points by class, seen from behind and above the vehicle."""
    real = ~np.isin(shot.sweep.kind, [KIND["nothing"], KIND["ego"]])
    xyz = shot.points[real, :3].astype(np.float64)
    label = PROMPT_OF_KIND[shot.sweep.kind[real]]
    # LiDAR frame: x right, y ahead. The eye looks ahead and down.
    eye, tilt = np.array([0.0, -26.0, 17.0]), np.deg2rad(24)
    local = xyz - eye
    depth = local[:, 1] * np.cos(tilt) - local[:, 2] * np.sin(tilt)
    up = local[:, 1] * np.sin(tilt) + local[:, 2] * np.cos(tilt)
    focal = 0.52 * width
    seen = depth > 2
    u = (width / 2 + focal * local[seen, 0] / depth[seen]).astype(int)
    v = (0.42 * height - focal * up[seen] / depth[seen]).astype(int)
    shade = np.clip(1.25 - depth[seen] / 130, 0.35, 1)[:, None]
    color = (COLORS[label[seen]] * shade).astype(np.uint8)
    picture = np.full((height, width, 3), (18, 20, 26), np.uint8)
    for k in np.argsort(-depth[seen]):
        size = 3 if depth[seen][k] < 26 else 2
        if 0 <= u[k] < width - size and 0 <= v[k] < height - size:
            picture[v[k] : v[k] + size, u[k] : u[k] + size] = color[k]
    return picture


def legend(picture: Image.Image, present: list[int]) -> None:
    draw, font = ImageDraw.Draw(picture), ImageFont.load_default(size=15)
    x, y = 14, picture.height - 26
    draw.rectangle((0, picture.height - 34, picture.width, picture.height), fill=(18, 20, 26))
    for k in present:
        draw.rectangle((x, y + 3, x + 13, y + 16), fill=tuple(int(c) for c in COLORS[k]))
        draw.text((x + 19, y), CLASSES[k], fill=(230, 230, 230), font=font)
        x += 38 + int(draw.textlength(CLASSES[k], font=font))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--scene", type=int, default=9)
    parser.add_argument("--seconds", type=float, default=3.0)
    root = Path(__file__).resolve().parents[1]
    parser.add_argument("--out", type=Path, default=root / "docs" / "images" / "synthetic.jpg")
    options = parser.parse_args()
    world = make_world(options.seed, options.scene, 20.0)
    shot = capture(
        world,
        nuscenes_rig(),
        seconds=options.seconds,
        frame=0,
        image_scale=1.0,
        model=nuscenes.MODEL,
        keep_lost=True,
    )
    views = {view.mount.name: view.picture for view in shot.shots}
    w = WIDTH // 3
    h = w * 9 // 16
    below = 420
    picture = Image.new("RGB", (WIDTH, 2 * h + below + 34))
    for k, name in enumerate(NAMES):
        view = views[name]
        picture.paste(Image.fromarray(view.image).resize((w, h), Image.Resampling.LANCZOS), (k * w, 0))
        luminance = view.image.mean(axis=2, keepdims=True) / 255
        painted = (COLORS[view.prompt] * (0.45 + 0.55 * luminance)).astype(np.uint8)
        picture.paste(Image.fromarray(painted).resize((w, h), Image.Resampling.LANCZOS), (k * w, h))
    picture.paste(Image.fromarray(cloud(shot, WIDTH, below)), (0, 2 * h))
    legend(picture, list(range(1, len(CLASSES))))
    options.out.parent.mkdir(parents=True, exist_ok=True)
    picture.save(options.out, quality=80, optimize=True)
    print(f"{options.out}: {options.out.stat().st_size // 1000} kB")


if __name__ == "__main__":
    main()
