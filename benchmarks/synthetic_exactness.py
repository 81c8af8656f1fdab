"""How exact the synthetic labels are: share of point-pixel pairs whose mask carries the point's own class.

python benchmarks/synthetic_exactness.py [--scenes 4] [--frames 2] [--image-scale 1.0] [--rig nuscenes]
"""

from __future__ import annotations

import argparse

from olivine.synthetic import kitti, nuscenes
from olivine.synthetic.audit import Exactness, exactness
from olivine.synthetic.rig import kitti_rig, nuscenes_rig
from olivine.synthetic.world import make_world


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scenes", type=int, default=4)
    parser.add_argument("--frames", type=int, default=2)
    parser.add_argument("--image-scale", type=float, default=1.0)
    parser.add_argument("--rig", choices=("nuscenes", "kitti"), default="nuscenes")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    rig, model = (nuscenes_rig(), nuscenes.MODEL) if options.rig == "nuscenes" else (kitti_rig(), kitti.MODEL)
    total = Exactness()
    for scene in range(options.scenes):
        world = make_world(options.seed, scene, 20.0)
        for frame in range(options.frames):
            total += exactness(
                world,
                rig,
                seconds=2.0 + 7.5 * frame,
                frame=frame,
                image_scale=options.image_scale,
                model=model,
            )
    print(f"{options.rig} rig, image scale {options.image_scale}, {options.scenes * options.frames} frames")
    print(f"pairs                                     {total.pairs}")
    print(f"camera ray meets the point's own surface  {total.visible} ({100 * total.visible / total.pairs:.2f}%)")
    print(f"  of them with the point's class          {100 * total.visible_right / total.visible:.3f}%")
    print(f"hidden (parallax, motion)                 {total.hidden} ({100 * total.hidden / total.pairs:.2f}%)")
    print(f"  of them with the point's class          {100 * total.hidden_right / max(total.hidden, 1):.2f}%")
    right = total.visible_right + total.hidden_right
    print(f"all pairs with the point's class          {100 * right / total.pairs:.2f}%")


if __name__ == "__main__":
    main()
