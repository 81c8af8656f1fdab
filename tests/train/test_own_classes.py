"""Networks and methods of a user's own that do what the contract allows, and what is said where they do not."""

from __future__ import annotations

import json
import multiprocessing
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

import olivine
from olivine.common import OlivineError
from olivine.downstream.embeddings import Space
from olivine.downstream.network import features_at
from olivine.downstream.segment_training import _backbone_groups
from olivine.downstream.settings import FinetuneSettings
from olivine.downstream.weights import export_backbone
from olivine.study.run import _pretraining
from olivine.train.backbone import Clouds, build_backbone
from olivine.train.build import codes_of, needs_of
from olivine.train.checkpoint import load_checkpoint
from olivine.train.contract import without_gradient
from olivine.train.loop import is_better, pretrain
from olivine.train.method import Needs, find_method
from olivine.train.settings import PretrainSettings, load_settings
from olivine.train.voxelize import VoxelSettings, voxelize

NETWORKS = '''
from dataclasses import dataclass
import torch
from torch import nn
from olivine.train.backbone import Backbone, Features
from olivine.train.method import Method, MethodSettings, Term
from olivine.train.sparse import SparseTensor
from olivine.train.sparse.modules import Conv3d


class Net(Backbone):
    """One convolution, and a factor of the network's own."""

    def __init__(self, in_channels=1, *, seed=0):
        super().__init__()
        self.feature_channels = 8
        self.conv = Conv3d(in_channels, 8, 3)
        self.conv.reset_parameters(seed)
        self.scale = nn.Parameter(torch.ones(()))

    def feature(self, clouds):
        return self.conv(clouds.tensor).feature * self.scale

    def encode(self, clouds):
        return Features(clouds.tensor.replace(self.feature(clouds)), clouds.voxels.inverse)

    def new_head(self, out_channels, generator):
        head = Conv3d(self.feature_channels, out_channels, 1, bias=True)
        head.reset_parameters(generator)
        return head


class InOtherOrder(Net):
    """Its voxels are in another order than the clouds', as other engines give them."""

    def encode(self, clouds):
        order = torch.randperm(len(clouds.voxels.coordinate), generator=torch.Generator().manual_seed(1))
        cells = SparseTensor(self.feature(clouds)[order], clouds.voxels.coordinate[order])
        return Features(cells, torch.argsort(order)[clouds.voxels.inverse])


class AtPoints(Net):
    """A feature for each point, by its voxel's and the point's height."""

    def encode(self, clouds):
        feature = self.feature(clouds)[clouds.voxels.inverse] + clouds.points[:, 2:3]
        one = torch.arange(len(feature))
        coordinate = torch.stack([clouds.cloud, one, one, one], 1).int()
        return Features(SparseTensor(feature, coordinate), one)


class OfNoPlace(Net):
    """Gives some points no place, which have a voxel."""

    def encode(self, clouds):
        found = super().encode(clouds)
        found.place = torch.where(clouds.points[:, 0] > 5, -1, found.place)
        return found


class Drawing(Net):
    """Weights that PyTorch draws, dropout, and a part that is never used."""

    def __init__(self, in_channels=1, *, seed=0):
        super().__init__(in_channels, seed=seed)
        self.line, self.idle = nn.Linear(8, 8), nn.Linear(8, 8)

    def feature(self, clouds):
        return nn.functional.dropout(self.line(super().feature(clouds)), training=self.training)


@dataclass(frozen=True)
class PullSettings(MethodSettings):
    pull: float = 1.0
    rings: tuple[tuple[float, float], ...] = ((0.0, 10.0), (10.0, 50.0))
    returns: str = "terms"


class Pull(Method):
    """Points near their pixels."""

    Settings = PullSettings
    terms = ("pull",)

    def __init__(self, settings, context):
        super().__init__(settings, context)
        self.settings, self.head = settings, context.point_head(context.pixel_channels)

    def forward(self, group):
        rows = torch.randperm(group.size, generator=group.generator(0))[:50]
        (feature,) = group.pixels.at(rows)
        apart = (group.points.at(rows, self.head) - nn.functional.normalize(feature, dim=1)).square().sum(1).mean()
        terms = {"pull": Term(apart, self.settings.pull)}
        return {"terms": terms, "a tensor": apart, "bare": {"pull": apart}, "other": {"push": terms["pull"]}}[
            self.settings.returns
        ]
'''


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    path = tmp_path / "own_classes.py"
    path.write_text(NETWORKS)
    monkeypatch.syspath_prepend(tmp_path)
    yield path
    sys.modules.pop("own_classes", None)


@pytest.fixture
def of(own: Path, small_shards: Path, quick: Callable[[Path], list[str]]) -> Callable[..., PretrainSettings]:
    def settings(network: str = "Net", *changes: str) -> PretrainSettings:
        (own.parent / "own.yaml").write_text(
            "image: {encoder: small}\nmethod: {name: own_classes:Pull}\nrun: {steps: 2}\n"
        )
        return load_settings(
            own.parent / "own.yaml", [*quick(small_shards), f"backbone.name=own_classes:{network}", *changes]
        )

    return settings


@pytest.fixture
def clouds() -> Clouds:
    points = torch.from_numpy(np.random.default_rng(0).uniform(-4, 4, (400, 4)).astype(np.float32))
    settings = VoxelSettings(size_m=1.0, crop=False)
    voxels = voxelize(points, [200, 200], settings)
    assert len(voxels.first) < 390  # several points in a voxel
    return Clouds(points, torch.arange(400) // 200, voxels, settings)


def test_features_are_asked_for_at_the_networks_own_places(own: Path, clouds: Clouds) -> None:
    net, other, at_points = (
        build_backbone(f"own_classes:{name}", seed=0) for name in ("Net", "InOtherOrder", "AtPoints")
    )
    expected = features_at(net, clouds)
    assert expected.shape == (len(clouds.voxels.first), 8)
    assert torch.equal(features_at(other, clouds), expected)
    assert torch.equal(features_at(at_points, clouds), expected + clouds.points[clouds.voxels.first, 2:3])
    at_points.per_point = True
    assert torch.equal(features_at(at_points, clouds), expected[clouds.voxels.inverse] + clouds.points[:, 2:3])
    by_point = [Space("", one).at_points(one.encode(clouds)) for one in (net, other)]
    assert torch.equal(by_point[0], by_point[1])


def test_a_pair_without_a_place_is_one_line(of: Callable[..., PretrainSettings], tmp_path: Path) -> None:
    with pytest.raises(
        OlivineError, match=r"OfNoPlace\.encode: gives [\d,]+ of [\d,]+ pairs' points no place"
    ) as caught:
        pretrain(of("OfNoPlace"), tmp_path / "run")
    assert "\n" not in str(caught.value)


def test_a_parameter_that_no_layer_holds_learns_with_the_first(own: Path) -> None:
    net = build_backbone("own_classes:Net", seed=0)
    groups = _backbone_groups(net, FinetuneSettings(backbone_lr=0.1, layer_decay=0.5))
    assert [([p.shape for p in parameters], rate) for parameters, rate in groups] == [
        ([net.conv.kernel.shape], 0.1),
        ([torch.Size([])], 0.1),
    ]


def test_what_a_network_draws_is_the_seeds_also_where_a_run_goes_on(
    of: Callable[..., PretrainSettings], tmp_path: Path
) -> None:
    def tensors(name: str) -> dict[str, torch.Tensor]:
        return load_checkpoint(tmp_path / name)["backbone_state"]

    settings = of("Drawing", "run.checkpoint_epochs=1", "run.keep=9", "run.batch=1")
    summary = pretrain(settings, tmp_path / "one")
    assert [note for note in summary.notes if "got no gradient: not trained" in note] == [
        "idle.weight, idle.bias of the backbone own_classes:Drawing got no gradient: not trained"
    ]
    torch.manual_seed(3)  # the caller's own draws go on as if nothing had been between
    before = torch.rand(2)
    torch.manual_seed(3)
    first = torch.rand(1)
    pretrain(settings, tmp_path / "other")
    assert torch.equal(torch.cat([first, torch.rand(1)]), before)
    one, other = tensors("one"), tensors("other")
    assert all(torch.equal(one[name], other[name]) for name in one)
    backbone: Any = build_backbone("own_classes:Drawing", seed=0)
    for taught in (backbone.conv.kernel, backbone.scale, *backbone.line.parameters()):
        taught.grad = torch.zeros_like(taught)
    with pytest.raises(OlivineError, match=r"idle\.weight, idle\.bias of the backbone b got no gradient"):
        without_gradient(backbone, "b", 2)


def test_a_run_that_was_stopped_draws_what_it_would_have_drawn(
    of: Callable[..., PretrainSettings], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import contextlib

    from olivine.train import loop

    settings = of("Drawing")
    pretrain(settings, tmp_path / "whole")
    with monkeypatch.context() as patched:
        patched.setattr(loop, "stop_signals", lambda: contextlib.nullcontext(SimpleNamespace(requested=True)))
        assert pretrain(settings, tmp_path / "stopped").step == 1
    torch.manual_seed(5)
    assert pretrain(settings, tmp_path / "stopped").resumed_from == 1
    one, other = (load_checkpoint(tmp_path / name)["backbone_state"] for name in ("whole", "stopped"))
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_code_that_has_changed_is_said_and_kept_apart(
    own: Path, of: Callable[..., PretrainSettings], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = of()
    pretrain(settings, tmp_path / "run")
    assert json.loads((tmp_path / "run" / "run.json").read_text())["code"] == codes_of(settings)
    assert set(codes_of(settings)) == {"own_classes:Pull", "own_classes:Net"}
    assert codes_of(load_settings("cpu")) == {}
    study: Any = SimpleNamespace(features="stored", random=settings)
    ground: Any = SimpleNamespace(encoder_of=lambda _: "e", train_of=lambda _: SimpleNamespace(digest="d"))
    before = [_pretraining(study, ground, one) for one in (settings, None)]
    assert pretrain(settings, tmp_path / "run").notes == ()
    own.write_text(NETWORKS + "# changed\n")
    assert all(a != b for a, b in zip(before, (_pretraining(study, ground, one) for one in (settings, None))))
    capsys.readouterr()
    notes = pretrain(settings, tmp_path / "run").notes
    assert "the file of own_classes:Net has changed since this run began" in notes
    assert "has changed since this run began; it goes on with what is there now" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("returns", "message"),
    [
        ("a tensor", r"Pull\.forward: returns no dictionary of terms"),
        ("bare", r"Pull\.forward: returns no dictionary of terms"),
        ("other", r"Pull\.forward: returns a term 'push' that `terms` does not name"),
    ],
)
def test_what_a_method_returns_is_checked(
    of: Callable[..., PretrainSettings], tmp_path: Path, returns: str, message: str
) -> None:
    with pytest.raises(OlivineError, match=message):
        pretrain(of("Net", f"method.returns={returns}"), tmp_path / "run")


def test_a_nested_setting_is_its_own_when_the_run_goes_on(of: Callable[..., PretrainSettings], tmp_path: Path) -> None:
    pretrain(of(), tmp_path / "run")
    assert pretrain(of(), tmp_path / "run").resumed_from == 2
    with pytest.raises(OlivineError, match=r"method\.rings is \[\[0\.0, 10\.0\], \[10\.0, 50\.0\]\] there"):
        pretrain(of("Net", "method.rings=[[0, 20]]"), tmp_path / "run")


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        (
            ("pair_labels",),
            r"not all there: 'pair_labels' is none\. Did you mean 'pair_label'\?",
        ),
        (
            "timestamp",
            r"the columns 'timestamp' that a method needs are no tuple\. Did you mean 'timestamp'\? Give a tuple",
        ),
    ],
)
def test_a_column_that_is_not_there_is_named(
    of: Callable[..., PretrainSettings], monkeypatch: pytest.MonkeyPatch, columns: Any, message: str
) -> None:
    settings = of()
    monkeypatch.setattr(find_method("own_classes:Pull"), "needs", lambda _: Needs(columns))
    with pytest.raises(OlivineError, match=message):
        needs_of(settings)


def test_the_best_checkpoint_is_of_a_number() -> None:
    assert is_better(1.0, None) and is_better(1.0, 2.0) and is_better(1.0, float("nan"))
    assert not is_better(float("nan"), None) and not is_better(float("nan"), 1.0) and not is_better(2.0, 1.0)


def test_settings_are_those_of_the_class_that_is_there_now(own: Path, of: Callable[..., PretrainSettings]) -> None:
    import importlib

    assert not hasattr(of().method, "strength")
    own.write_text(NETWORKS.replace("pull: float = 1.0", "pull: float = 1.0\n    strength: float = 3.0"))
    importlib.invalidate_caches()
    importlib.reload(sys.modules["own_classes"])
    assert of("Net", "method.strength=4").method.strength == 4


def test_a_network_that_no_code_base_has_is_exported_whole(of: Callable[..., PretrainSettings], tmp_path: Path) -> None:
    pretrain(of("Drawing"), tmp_path / "run")
    summary = export_backbone(tmp_path / "run", tmp_path / "out.pth")
    written = torch.load(tmp_path / "out.pth", weights_only=True)
    assert summary.layout == "state_dict" and summary.left_out == []
    assert set(written) >= {"conv.kernel", "scale", "line.weight", "idle.bias"}
    assert summary.parameters == len(written)


def test_points_in_any_form_have_features(of: Callable[..., PretrainSettings], tmp_path: Path) -> None:
    pretrain(of(), tmp_path / "run")
    network = olivine.load(tmp_path / "run")
    points = np.random.default_rng(0).uniform(-4, 4, (30, 4)).astype(np.float32)
    expected = network.features(points)
    assert np.array_equal(network.features(points[::-1]), expected[::-1])
    assert np.array_equal(network.features(points.tolist()), expected)


def test_a_worker_that_runs_the_script_again_is_told(
    of: Callable[..., PretrainSettings], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(multiprocessing.current_process(), "_inheriting", True, raising=False)
    with pytest.raises(OlivineError, match=r"In a script, call olivine under if __name__ == \"__main__\":"):
        pretrain(of("Net", "data.workers=1"), tmp_path / "run")
