"""What cannot be done is said in one line, nothing is half done, nothing that is not ours is touched."""

from __future__ import annotations

import errno
import shutil
from collections import namedtuple
from pathlib import Path

import pytest

from olivine.common import OlivineError
from olivine.synthetic import nuscenes
from olivine.synthetic.settings import SyntheticSettings
from olivine.synthetic.write import write_dataset

TINY = {"scenes": 1, "frames": 2, "image_scale": 0.05, "workers": 1}


@pytest.mark.parametrize(
    ("change", "where"),
    [
        ({"scenes": 0}, "--scenes"),
        ({"scenes": 851}, "--scenes"),
        ({"format": "semantickitti", "scenes": 12}, "--scenes"),
        ({"frames": 0}, "--frames"),
        ({"frames": -3}, "--frames"),
        ({"frames": 10**9}, "--frames"),
        ({"image_scale": 0.0}, "--image-scale"),
        ({"image_scale": float("nan")}, "--image-scale"),
        ({"image_scale": 50.0}, "--image-scale"),
        ({"seed": -1}, "--seed"),
        ({"workers": -1}, "--workers"),
        ({"format": "waymo"}, "--format"),
    ],
)
def test_a_size_that_cannot_be_names_its_option(change: dict, where: str) -> None:
    with pytest.raises(OlivineError, match=where):
        SyntheticSettings(**change)


def test_a_folder_that_is_not_synthetic_is_left_alone(tmp_path: Path) -> None:
    out = tmp_path / "real"
    out.mkdir()
    (out / "precious.txt").write_text("keep me")
    with pytest.raises(OlivineError, match="left alone"):
        write_dataset(SyntheticSettings(**TINY), out)
    assert (out / "precious.txt").read_text() == "keep me"
    (out / "synthetic.json").write_text('{"synthetic": false}')
    with pytest.raises(OlivineError, match="left alone"):
        write_dataset(SyntheticSettings(**TINY), out)
    (tmp_path / "file").write_text("x")
    with pytest.raises(OlivineError, match="left alone"):
        write_dataset(SyntheticSettings(**TINY), tmp_path / "file")
    link = tmp_path / "link"
    link.symlink_to(out)
    with pytest.raises(OlivineError, match="left alone"):
        write_dataset(SyntheticSettings(**TINY), link)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["file", "link", "real"]


def test_the_same_again_does_nothing_and_other_settings_replace(tmp_path: Path) -> None:
    out = tmp_path / "set"
    assert not write_dataset(SyntheticSettings(**TINY), out).reused
    before = (out / "synthetic.json").stat().st_mtime_ns
    again = write_dataset(SyntheticSettings(**TINY), out)
    assert again.reused and again.frames == 2 and (out / "synthetic.json").stat().st_mtime_ns == before
    other = write_dataset(SyntheticSettings(**{**TINY, "frames": 1}), out)
    assert not other.reused and other.frames == 1
    assert len(list((out / "samples/LIDAR_TOP").iterdir())) == 1


def test_too_little_space_is_said_before_anything_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(10**9, 10**9, 1000))
    with pytest.raises(OlivineError, match="GB are free"):
        write_dataset(SyntheticSettings(**TINY), tmp_path / "set")
    assert list(tmp_path.iterdir()) == []


def test_a_disk_that_fills_up_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(root: Path, name: str, data: bytes) -> None:
        if "CAM_BACK" in name:
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(nuscenes, "put", full)
    with pytest.raises(OlivineError, match="disk is full"):
        write_dataset(SyntheticSettings(**TINY), tmp_path / "set")
    assert list(tmp_path.iterdir()) == []


def test_an_interruption_leaves_nothing_and_what_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "set"
    write_dataset(SyntheticSettings(**TINY), out)

    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(nuscenes, "put", stop)
    with pytest.raises(KeyboardInterrupt):
        write_dataset(SyntheticSettings(**{**TINY, "seed": 9}), out)
    assert [p.name for p in tmp_path.iterdir()] == ["set"]
    assert write_dataset(SyntheticSettings(**TINY), out).reused
