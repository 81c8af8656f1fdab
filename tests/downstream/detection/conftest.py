"""A small synthetic set in the layout of KITTI's object benchmark."""

from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def kitti_objects(tmp_path_factory) -> Path:
    from olivine.synthetic.settings import SyntheticSettings
    from olivine.synthetic.write import write_dataset

    out = tmp_path_factory.mktemp("objects") / "set"
    write_dataset(SyntheticSettings(format="kitti-object", scenes=3, frames=3, image_scale=0.5, workers=1), out)
    return out
