"""``olivine view``: a data set, label maps, shards or predictions live in a browser, drawn by viser; frames are read when shown."""

from __future__ import annotations

import contextlib
import errno
import html
import io
import math
import socket
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..common import OlivineError
from ..common.colors import class_colors
from ..readers.frame import Frame
from .contents import Contents, Sources, read_labels_and_shards
from .shown import BACKGROUND, UNSEEN, UNSEEN_COLOR, Shown, ShownCamera, StoreFrames, modes, show_frame, show_record

FAR = 60.0
"""Metres where the colours of distance end."""
_WIDTH = 800  # pixels of an image, at most
_FRUSTUM = 1.5  # of a camera in the scene, as viser scales it
_OVERLAY = 0.55  # share of the label map's colour on an image


@dataclass(frozen=True)
class Scenes:
    """What is looked at.

    Attributes:
        title: what it is, for the browser's panel.
        count: frames.
        read: a frame by its number from 0.
        modes: as :func:`~olivine.report.shown.modes` has them.
        contents: what cannot be read of a frame is noted in its ``missing``.
    """

    title: str
    count: int
    read: Callable[[int], Shown]
    modes: list[dict[str, Any]]
    contents: Contents


def open_scenes(
    sources: Sources,
    frames: Sequence[Frame] | None = None,
    point_classes: tuple[str, ...] = (),
    root: Any = None,
    split: str | None = None,
) -> Scenes:
    """The shards' frames with predictions and label maps; else the label maps' with their clouds; else those given.

    Args:
        sources: ``labels``, ``shards`` and ``predictions`` are read.
        frames: of a data set, for where there are no shards and no label maps.
        point_classes: of ``frames``.
        root: the data set's folder, if it has moved since the label maps were made.
        split: of the label maps' frames; all without one.

    Raises:
        OlivineError: a folder is not what it should be, or there is no frame.
    """
    contents = read_labels_and_shards(sources)
    shards, store = contents.shards, contents.labels
    classes = store.classes if store is not None else ()
    read: Callable[[int], Shown]
    if shards is not None:
        found = contents.attempt("label maps", lambda: StoreFrames(store, root)) if store is not None else None
        read = lambda i: show_record(contents, shards, i, found, _WIDTH)  # noqa: E731
        title, count = f"{shards.dataset} {shards.split}, shards", len(shards)
        classes, point_classes, cameras = shards.classes, contents.point_classes, shards.cameras
    else:
        if store is not None:
            frames = labelled = StoreFrames(store, root, split)
            point_classes = labelled.point_classes
        known = frames or ()
        read = lambda i: show_frame(contents, known[i], _WIDTH)  # noqa: E731
        count, cameras = len(known), tuple(camera.name for camera in known[0].cameras) if known else ()
        title = f"{known[0].dataset}{', label maps' if store is not None else ''}" if known else ""
    if not count:
        where = sources.shards or sources.labels or root
        raise OlivineError("no frame to show", where=where, remedy="name another folder or --split")
    every = [*modes(classes, point_classes, cameras), {"key": "intensity", "name": "intensity"}]
    return Scenes(title, count, read, every, contents)


class Viewer:
    """The page in the browser: its parts, and the frame that is shown.

    Attributes:
        server: viser's.
        url: where a browser finds it.
        frame, mode, size: the slider of the frame (from 1), what colours the points, metres of a point.
        playing, rate: whether the frames follow each other, and how many a second.
        overlay, marks, frustums: whether label maps and points are on the images, and cameras in the scene.
        switches: a switch for each class of the mode, by value.
        cloud: the points in the scene.
        images, placed: a camera's image beside the scene, and the camera in it, by name.
        shown: the frame.

    Raises:
        OlivineError: viser is not installed, the port is taken, or the first frame cannot be read.
    """

    def __init__(self, scenes: Scenes, host: str = "127.0.0.1", port: int = 8080) -> None:
        viser = _viser()
        self._scenes, self._lock, self._number = scenes, threading.RLock(), 0
        self.shown = scenes.read(
            0
        )  # before there is a server: what is wrong with the folder is wrong with its first frame
        _check_port(host, port)
        with contextlib.redirect_stdout(io.StringIO()):  # the command says where it listens
            self.server = viser.ViserServer(host=host, port=port, label="olivine", verbose=False)
        self.url = f"http://{host}:{self.server.get_port()}"
        gui = self.server.gui
        gui.configure_theme(
            control_layout="collapsible",
            control_width="large",
            dark_mode=True,
            show_logo=False,
            show_share_button=False,  # it would carry the data through another's server
        )
        self.server.scene.set_background_image(np.full((1, 1, 3), BACKGROUND, np.uint8))
        self._caption = gui.add_html("")
        self.frame = gui.add_slider("frame", 1, max(2, scenes.count), 1, 1, disabled=scenes.count == 1)
        self.playing = gui.add_checkbox("play", False, disabled=scenes.count == 1)
        self.rate = gui.add_slider("frames a second", 1, 20, 1, 5)
        known = {*self.shown.values, "distance", "intensity"}
        self._modes = {mode["name"]: mode for mode in scenes.modes if mode["key"] in known}
        first = next(name for name, mode in self._modes.items() if mode["key"] != "camera")
        self.mode = gui.add_dropdown("colour by", tuple(self._modes), initial_value=first)
        self.size = gui.add_slider("point size / m", 0.01, 0.3, 0.01, 0.06)
        self._legend = gui.add_html("")
        self._hidden: dict[str, set[int]] = {mode["key"]: set() for mode in scenes.modes}
        self.switches: dict[int, Any] = {}
        self._classes = gui.add_folder("classes", expand_by_default=False)
        self._cameras = gui.add_folder("images")
        with self._cameras:
            self.overlay = gui.add_checkbox("label maps", False, visible=scenes.contents.labels is not None)
            self.marks = gui.add_checkbox("points", True)
            self.frustums = gui.add_checkbox("cameras in the scene", True)
        self.images: dict[str, Any] = {}
        self.placed: dict[str, Any] = {}
        self.frame.on_update(lambda _: self._show())
        self.mode.on_update(lambda _: self._choose())
        self.size.on_update(lambda _: setattr(self.cloud, "point_size", self.size.value))
        for part in (self.overlay, self.marks, self.frustums):
            part.on_update(lambda _: self._paint())
        self._look()
        self._choose()

    def run(self) -> None:
        """Serve until Ctrl-C."""
        try:
            while True:
                time.sleep(1 / self.rate.value)
                if self.playing.value:
                    self.frame.value = self.frame.value % self._scenes.count + 1
        except KeyboardInterrupt:
            pass
        finally:
            self.server.stop()

    def colors(self) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
        """The colour of each of the frame's points, uint8 [N, 3], and whether its class is switched on, bool [N]."""
        mode, points = self._modes[self.mode.value], self.shown.points
        if mode["key"] == "distance":
            share = np.linalg.norm(points[:, :3].astype(np.float64), axis=1) / FAR
        elif mode["key"] == "intensity":
            share = points[:, 3] / max(1e-6, self._brightest())
        else:
            value = self.shown.values.get(mode["key"], np.full(len(points), UNSEEN, np.uint8))
            if "names" not in mode:
                share = value / 255
            else:
                table = np.full((256, 3), UNSEEN_COLOR, np.uint8)
                table[: len(mode["colors"])] = np.array(mode["colors"], np.uint8).reshape(-1, 3)
                return table[value], ~np.isin(value, list(self._hidden[mode["key"]]))
        return _ramp(share), np.ones(len(points), bool)

    def _brightest(self) -> float:
        # One point on a reflector would leave all others dark.
        return float(np.percentile(self.shown.points[:, 3], 99)) if len(self.shown.points) else 0.0

    def _show(self) -> None:
        with self._lock:
            number = (
                min(self.frame.value, self._scenes.count) - 1
            )  # of many events of a dragged slider the last one counts
            if number == self._number:
                return
            self._number = number
            self._scenes.contents.missing.clear()
            try:
                self.shown = self._scenes.read(number)
            except OlivineError as error:
                self._scenes.contents.missing.append(str(error))
                self.shown = Shown("", "", np.zeros((0, 4), np.float32))
            self._paint()

    def _choose(self) -> None:
        """Make the switches and the legend of another mode."""
        with self._lock:
            mode, gui = self._modes[self.mode.value], self.server.gui
            for switch in self.switches.values():
                switch.remove()
            names = dict(enumerate(mode.get("names", ())))
            names |= {UNSEEN: "no camera sees it"} if mode["key"] in ("weak", "camera") else {}
            hidden = self._hidden[mode["key"]]
            with self._classes:
                self.switches = {v: gui.add_checkbox(name, v not in hidden) for v, name in names.items()}
            for value, switch in self.switches.items():
                switch.on_update(lambda _, value=value: self._switch(value))
            self._classes.visible = bool(names)
            self._paint()

    def _switch(self, value: int) -> None:
        with self._lock:
            hidden = self._hidden[self._modes[self.mode.value]["key"]]
            (hidden.discard if self.switches[value].value else hidden.add)(value)
            self._paint()

    def _paint(self) -> None:
        """Send the frame: the cloud, the images, the cameras, and what is said of them."""
        with self._lock, self.server.atomic():
            shown, scene = self.shown, self.server.scene
            colors, on = self.colors()
            size = self.size.value
            self.cloud = scene.add_point_cloud(
                "/points", shown.points[on, :3], colors[on], point_size=size, precision="float32", point_shading="flat"
            )
            drawn = {camera.name: self._drawn(camera, colors, on) for camera in shown.cameras}
            for name in self.images.keys() - drawn.keys():
                self.images[name].visible = self.placed[name].visible = False
            for camera in shown.cameras:
                image = drawn[camera.name]
                if camera.name in self.images:
                    self.images[camera.name].image, self.images[camera.name].visible = image, True
                else:
                    with self._cameras:
                        self.images[camera.name] = self.server.gui.add_image(image, label=camera.name, format="jpeg")
                self._place(camera, image)
            missing = "".join(f"<p>{html.escape(text)}</p>" for text in dict.fromkeys(self._scenes.contents.missing))
            where = f"{shown.scene}, {shown.token}" if shown.token else "cannot be read"
            caption = f"{self._scenes.title}: frame {self._number + 1} of {self._scenes.count}, {where}"
            self._caption.content = _text(f"<b>{html.escape(caption)}</b>{missing}")
            self._legend.content = _text(self._key())

    def _place(self, camera: ShownCamera, image: NDArray[np.uint8]) -> None:
        """A camera in the scene, with its image."""
        from viser.transforms import SO3

        to_lidar = np.linalg.inv(camera.lidar_to_camera)
        w, h = camera.size
        self.placed[camera.name] = self.server.scene.add_camera_frustum(
            f"/cameras/{camera.name}",
            fov=2 * math.atan(h / 2 / camera.intrinsic[1, 1]),
            aspect=w / h,
            scale=_FRUSTUM,
            image=image,
            format="jpeg",
            wxyz=SO3.from_matrix(to_lidar[:3, :3]).wxyz,
            position=to_lidar[:3, 3],
            visible=self.frustums.value,
        )

    def _drawn(self, camera: ShownCamera, colors: NDArray[np.uint8], on: NDArray[np.bool_]) -> NDArray[np.uint8]:
        """A camera's image as it is shown, uint8 [H, W, 3]."""
        pixels = np.asarray(camera.image).copy()
        if self.overlay.value and camera.overlay is not None:
            label = np.asarray(camera.overlay)
            color = class_colors(self._scenes.contents.labels.classes)[label]  # type: ignore[union-attr]
            mixed = ((1 - _OVERLAY) * pixels + _OVERLAY * color).astype(np.uint8)
            pixels = np.where(label[..., None] > 0, mixed, pixels)
        if self.marks.value:
            mine = on[camera.point]
            height, width = pixels.shape[:2]
            column, row = np.floor(camera.uv[mine]).astype(int).T
            for dy, dx in np.ndindex(2, 2):
                pixels[np.minimum(row + dy, height - 1), np.minimum(column + dx, width - 1)] = colors[
                    camera.point[mine]
                ]
        return pixels

    def _key(self) -> str:
        """The legend."""
        mode = self._modes[self.mode.value]
        if "names" in mode:
            entries = [*zip(mode["names"], mode["colors"])]
            entries += [("no camera sees it", UNSEEN_COLOR)] if UNSEEN in self.switches else []
            swatch = '<span style="white-space:nowrap"><span style="color:rgb({})">&#9632;</span> {}</span> '
            return "".join(swatch.format(",".join(map(str, color)), html.escape(name)) for name, color in entries)
        ends = {"distance": ("0 m", f"{FAR:g} m"), "intensity": ("0", f"{self._brightest():.3g}")}
        low, high = ends.get(mode["key"], ("0 %", "100 %"))
        stops = ",".join(f"rgb({r},{g},{b})" for r, g, b in _ramp(np.linspace(0, 1, 5)).tolist())
        bar = f"display:inline-block;width:9em;height:0.7em;background:linear-gradient(90deg,{stops})"
        return f'{low} <span style="{bar}"></span> {high}'

    def _look(self) -> None:
        """Begin behind and above the sensor, looking where the first camera does."""
        cameras = self.shown.cameras
        ahead = cameras[0].lidar_to_camera[2, :3] if cameras else np.array([1.0, 0.0, 0.0])
        self.server.initial_camera.position = (*(-25 * ahead[:2] / np.linalg.norm(ahead[:2])), 14.0)
        self.server.initial_camera.look_at = (*(8 * ahead[:2]), 0.0)


def _viser() -> Any:
    try:
        import viser
    except ImportError as error:
        raise OlivineError(f"viser is not usable ({error})", remedy="install it: pip install 'olivine[view]'") from None
    return viser


def _check_port(host: str, port: int) -> None:
    """Raise unless a server can listen there: viser takes the next free port, and tries a thousand where none can do."""
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        with socket.socket(family) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((host, port))
    except (OSError, OverflowError) as error:
        taken = getattr(error, "errno", None) == errno.EADDRINUSE
        what = (
            "the port is taken"
            if taken
            else f"no server can listen there ({getattr(error, 'strerror', None) or error})"
        )
        remedy = "name another with --port (0: a free one)" if taken else "change --host or --port"
        raise OlivineError(what, where=f"{host}:{port}", remedy=remedy) from None


def _ramp(share: NDArray[np.floating]) -> NDArray[np.uint8]:
    """From blue over green to yellow, even in brightness: shares [N] to uint8 [N, 3]."""
    from matplotlib import colormaps

    return np.asarray(255 * colormaps["viridis"](np.clip(share, 0, 1))[:, :3]).astype(np.uint8)


def _text(content: str) -> str:
    return f'<div style="padding:0 1em;font-size:0.85em;line-height:1.5">{content}</div>'
