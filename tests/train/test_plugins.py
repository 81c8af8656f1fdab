"""A method and a backbone from files outside the package, by their dotted paths, and what is said of wrong ones."""

from __future__ import annotations

import csv
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from olivine.common import OlivineError
from olivine.train.checkpoint import load_checkpoint
from olivine.train.loop import pretrain
from olivine.train.settings import load_settings

TOY = '''
from dataclasses import dataclass
import torch
from torch import nn
from olivine.train.backbone import Backbone, BackboneSettings, Features
from olivine.train.method import Method, MethodSettings, Needs, Term
from olivine.train.sparse.modules import Conv3d


@dataclass(frozen=True)
class ToyBackboneSettings(BackboneSettings):
    width: int = 8


class ToyBackbone(Backbone):
    """One convolution."""

    Settings = ToyBackboneSettings

    def __init__(self, in_channels=1, *, width=8, seed=0):
        super().__init__()
        self.feature_channels = width
        self.conv = Conv3d(in_channels, width, 3)
        self.conv.reset_parameters(seed)

    def encode(self, clouds):
        return Features(self.conv(clouds.tensor), clouds.voxels.inverse)

    def new_head(self, out_channels, generator):
        head = Conv3d(self.feature_channels, out_channels, 1, bias=True)
        head.reset_parameters(generator)
        return head


@dataclass(frozen=True)
class ToySettings(MethodSettings):
    pull: float = 1.0


class ToyMethod(Method):
    """Points near their pixels, and every hundredth pair counted."""

    Settings = ToySettings
    terms = ("pull",)
    exported = {"final": "head"}

    def __init__(self, settings, context):
        super().__init__(settings, context)
        self.settings, self.head = settings, context.point_head(context.pixel_channels)
        self.register_buffer("seen", torch.zeros((), dtype=torch.int64))

    @classmethod
    def needs(cls, settings):
        return Needs(("timestamp",))

    def forward(self, group):
        rows = torch.randperm(group.size, generator=group.generator(0))[:50]
        (feature,) = group.pixels.at(rows)
        assert group.column("timestamp").shape == (1,)
        apart = (group.points.at(rows, self.head) - nn.functional.normalize(feature, dim=1)).square().sum(1)
        self._size = group.size
        return {"pull": Term(apart.mean(), self.settings.pull)}

    def after_step(self, step, reduce):
        self.seen += reduce(torch.tensor(self._size))
'''


@pytest.fixture
def toy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    (tmp_path / "toy_plugin.py").write_text(TOY)
    monkeypatch.syspath_prepend(tmp_path)
    yield
    sys.modules.pop("toy_plugin", None)


def test_a_method_and_a_backbone_of_ones_own_train_and_resume(
    toy: None, small_shards: Path, quick: Callable[[Path], list[str]], tmp_path: Path
) -> None:
    changes = [*quick(small_shards), "run.steps=2"]
    changes += ["method.name=toy_plugin:ToyMethod", "backbone.name=toy_plugin:ToyBackbone", "backbone.width=12"]
    (tmp_path / "toy.yaml").write_text("image: {encoder: small}\nmethod: {name: toy_plugin:ToyMethod, pull: 2.0}\n")
    two = load_settings(tmp_path / "toy.yaml", changes)
    pretrain(two, tmp_path / "run")
    with open(tmp_path / "run" / "steps.csv", newline="") as handle:
        rows = list(csv.DictReader(handle))
    assert [float(r["loss"]) for r in rows] == pytest.approx([2 * float(r["loss_pull"]) for r in rows])
    content = load_checkpoint(tmp_path / "run")
    assert content["backbone"] == {"name": "toy_plugin:ToyBackbone", "in_channels": 1, "width": 12}
    assert content["method_state"]["seen"] > 0
    assert content["exported_heads"] == {"final": "head"}
    assert pretrain(two, tmp_path / "run").resumed_from == 2


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("method.name=olivin", r"no method 'olivin'. Did you mean 'olivine'\?"),
        ("backbone.name=voxel-net", r"no backbone 'voxel-net'. Did you mean 'voxelnet'\?"),
        ("method.name=nowhere.to_be:Found", "method 'nowhere.to_be:Found' cannot be imported"),
        ("method.name=toy_plugin:Nothing", "toy_plugin holds 0 methods"),
        ("method.name=toy_plugin:ToyBackbone", "toy_plugin holds 0 methods"),
        ("method.push=1", "no setting 'method.push'"),
    ],
)
def test_what_is_not_there_is_named_in_one_line(toy: None, change: str, message: str) -> None:
    with pytest.raises(OlivineError, match=message) as caught:
        load_settings("cpu", [change])
    assert "\n" not in str(caught.value)
