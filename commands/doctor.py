"""What is installed, what is missing, what would be used, and the command that mends it."""

from __future__ import annotations

import importlib
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Annotated

import typer
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

from ..common import Failure, gpu_problem, package_versions
from . import console
from .options import Json

# distribution, module, what it is for, the extra that brings it (None: olivine itself)
PACKAGES = (
    ("torch", "torch", "training", None),
    ("torchvision", "torchvision", "image encoders", None),
    ("numba", "numba", "projection and density", None),
    ("zarr", "zarr", "shards", None),
    ("scikit-learn", "sklearn", "figures, predict --smooth afi", None),
    ("lightning-fabric", "lightning_fabric", "devices", None),
    ("groundingdino-py", "groundingdino", "grounded-sam", "labelgen"),
    ("segment-anything", "segment_anything", "grounded-sam, sam-clip", "labelgen"),
    ("transformers", "transformers", "labelers", "labelgen"),
    ("scikit-image", "skimage", "labelgen --segments slic", "labelgen"),
    ("hdbscan", "hdbscan", "build-pairs --clusters", "clusters"),
    ("rosbags", "rosbags", "import-bag", "bags"),
    ("kiss-icp", "kiss_icp", "import-bag --odometry kiss-icp", "odometry"),
    ("viser", "viser", "view", "view"),
    ("ray", "ray", "--executor ray", "cluster"),
)


_WITHOUT_NUMPY1 = (3, 13)  # the first Python that numpy below 2 has no release for


@dataclass(frozen=True)
class Finding:
    """One line of the report: ``state`` is ``ok``, ``missing`` (a feature is not there) or ``broken``."""

    topic: str
    state: str
    text: str
    remedy: str = ""

    def as_dict(self) -> dict[str, str]:
        """For ``--json``."""
        return asdict(self)


def examine(quick: bool = False) -> Iterator[Finding]:
    """Look at the installation; ``quick`` leaves out what takes seconds (devices, folders)."""
    version = ".".join(map(str, sys.version_info[:3]))
    yield Finding("python", "ok", f"{version} at {sys.executable}")
    packages = (*PACKAGES, *_of_datasets())
    versions = package_versions([name for name, *_ in packages])
    # All at once first: apart, each imports torch again.
    apart = not quick and _import_problem(*(module for name, module, *_ in packages if versions[name] != "absent"))
    for name, module, purpose, extra in packages:
        if versions[name] == "absent":
            state = "missing" if extra else "broken"
            yield Finding(name, state, f"not installed ({purpose})", _install(extra))
            continue
        problem = _import_problem(module) if apart else None
        if problem:
            yield Finding(name, "broken", f"{versions[name]} does not import: {problem}", _reinstall(name))
        else:
            yield Finding(name, "ok", f"{versions[name]} ({purpose})")
            yield from _not_supported(name, versions[name])
    yield _opencv()
    if quick:
        return
    yield from _devices()
    yield _jpeg()
    yield _weights()
    yield from _folders()
    free = shutil.disk_usage(Path.cwd()).free / 2**30
    yield Finding(
        "disk", "ok" if free > 5 else "missing", f"{free:.0f} GiB free here", "" if free > 5 else "free some space"
    )


def _install(extra: str | None) -> str:
    if not extra:
        return "pip install 'olivine'"
    # One extra's package asks for numpy below 2, and is installed otherwise there.
    otherwise = ", or as docs/install.md says for this Python" if sys.version_info >= _WITHOUT_NUMPY1 else ""
    return f"pip install 'olivine[{extra}]'{otherwise}"


def _not_supported(name: str, version: str) -> Iterator[Finding]:
    """What a package says itself that it does not run with, and what this version of it has not."""
    python = ".".join(map(str, sys.version_info[:3]))
    for wanted_python in metadata.metadata(name).get_all("Requires-Python") or ():
        if not SpecifierSet(wanted_python).contains(python):
            said = f"is for Python {wanted_python}, this is {python}"
            yield Finding(name, "ok", said, "use such a Python, if it fails")
    for text in metadata.requires(name) or ():
        wanted = Requirement(text)
        found = package_versions([wanted.name])[wanted.name]
        here = wanted.marker is None or wanted.marker.evaluate({"extra": ""})
        if here and found != "absent" and not wanted.specifier.contains(found, prereleases=True):
            # Not broken: it may only say so out of caution.
            said = f"asks for {wanted.name}{wanted.specifier}, {found} is installed"
            remedy = f"pip install '{wanted.name}{wanted.specifier}', if it fails"
            if wanted.name == "numpy" and not wanted.specifier.contains("2") and sys.version_info >= _WITHOUT_NUMPY1:
                said, remedy = f"{said}; numpy below 2 has no release for Python {python}", ""
            yield Finding(name, "ok", said, remedy)
    if name == "transformers" and int(version.split(".")[0]) < 5:
        yield Finding("sam3", "missing", f"transformers {version} has no SAM 3", "pip install 'transformers>=5'")


def _of_datasets() -> list[tuple[str, str, str, str]]:
    """What the data sets' files import, as rows of :data:`PACKAGES`; the extra is called as the data set."""
    from ..readers import dataset_class, dataset_names

    rows: dict[str, tuple[str, str, str, str]] = {}
    for name in dataset_names():
        for package, module in dataset_class(name).packages.items():
            rows.setdefault(package, (package, module, f"reading {name}", name))
    return list(rows.values())


def _import_problem(*modules: str) -> str | None:
    # In a process of its own: a package that breaks at import may take the interpreter with it.
    code = f"import {', '.join(modules)}"
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, check=False)
    if done.returncode == 0:
        return None
    lines = done.stderr.strip().splitlines()
    return lines[-1] if lines else f"exit code {done.returncode}"


def _reinstall(name: str) -> str:
    if name in ("torch", "torchvision"):
        return "pip install --force-reinstall torch==2.14.1 torchvision==0.29.1 (they must match)"
    return f"pip install --force-reinstall --no-deps {name}"


def _opencv() -> Finding:
    """Two packages of our dependencies own the module cv2; the last one installed wins."""
    versions = package_versions(["opencv-python", "opencv-python-headless"])
    present = {name: version for name, version in versions.items() if version != "absent"}
    if not present:
        return Finding(
            "opencv", "missing", "not installed (grounded-sam, devkits)", "pip install opencv-python-headless"
        )
    problem = _import_problem("cv2")
    text = ", ".join(f"{name} {version}" for name, version in present.items())
    if problem is None:
        return Finding("opencv", "ok", f"cv2 imports without a display ({text})")
    wanted = present.get("opencv-python-headless") or next(iter(present.values()))
    return Finding(
        "opencv",
        "broken",
        f"cv2 does not import ({problem}); {text} own the same module",
        f"pip install --no-deps --force-reinstall opencv-python-headless=={wanted}",
    )


def _devices() -> Iterator[Finding]:
    try:
        torch = importlib.import_module("torch")
    except Exception as error:  # whatever a broken torch raises is what the user needs to see
        yield Finding("device", "broken", f"torch does not import: {error}", _reinstall("torch"))
        return
    if torch.cuda.is_available():
        for index in range(torch.cuda.device_count()):
            properties = torch.cuda.get_device_properties(index)
            yield Finding("device", "ok", f"cuda:{index} {properties.name}, {properties.total_memory / 2**30:.0f} GiB")
        yield Finding("preset", "ok", "olivine pretrain would take the paper's preset (there is a GPU)")
    else:
        if (problem := gpu_problem()) is not None:
            yield Finding("gpu", "missing", problem, "install a driver and a torch that fit each other")
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
        yield Finding("device", "ok", f"CPU, {cores} cores, {torch.backends.cpu.get_cpu_capability()}; no CUDA device")
        yield Finding("preset", "ok", "olivine pretrain would take the CPU preset (no GPU)")
    yield _engine()


def _engine() -> Finding:
    import torch

    from ..train.sparse import loops
    from ..train.sparse.engines import choose_engine, engine_problem

    path = "compiled loops" if loops.available() else "matrix products"
    beside = "; minkowski can be chosen with --engine" if engine_problem("minkowski") is None else ""
    chosen = f"torch (on this CPU with {path})"
    if torch.cuda.is_available():
        chosen = choose_engine("auto", torch.device("cuda", 0))[1]
    return Finding("sparse engine", "ok", f"{chosen}{beside}")


def _jpeg() -> Finding:
    from PIL import features

    if features.check_feature("libjpeg_turbo"):
        return Finding("jpeg", "ok", f"Pillow with libjpeg-turbo {features.version_feature('libjpeg_turbo')}")
    return Finding(
        "jpeg", "missing", "Pillow without libjpeg-turbo: images decode slower", "pip install --force-reinstall pillow"
    )


def _weights() -> Finding:
    """Whether the weights are here that labelgen takes for a real data set where nothing is said."""
    from ..common import weights_folder
    from ..labelgen.weights import list_weights

    names = ("swin-t", "bert-base-uncased", "vit-h")
    absent = [str(entry["name"]) for entry in list_weights() if entry["name"] in names and not entry["present"]]
    if not absent:
        return Finding("weights", "ok", f"grounded-sam's in {weights_folder()}")
    what = f"of grounded-sam, not in {weights_folder()}: {', '.join(absent)} (synthetic data needs none)"
    return Finding("weights", "missing", what, f"olivine weights fetch {' '.join(absent)}")


def _folders() -> Iterator[Finding]:
    from ..readers import dataset_names

    names = dataset_names()
    for name in names:
        path = Path("data") / name
        if path.is_dir():
            kind = "synthetic" if (path / "synthetic.json").is_file() else "real"
            yield Finding("data set", "ok", f"{path} ({kind})")
    if not any((Path("data") / name).is_dir() for name in names):
        known = ", ".join(names)
        yield Finding("data set", "missing", "none in data/", f"link one to data/NAME ({known}), or: olivine synth")


def register(app: typer.Typer) -> None:
    """Add the command to the command line."""
    app.command()(doctor)


def doctor(
    quick: Annotated[bool, typer.Option("--quick", help="Without importing every package.")] = False,
    as_json: Json = False,
) -> None:
    """Say what is installed, what is missing, what would be used, and what mends it.

    Example: olivine doctor
    """
    findings = list(examine(quick))
    if as_json:
        broken = [Failure(f.topic, f.text) for f in findings if f.state == "broken"]
        console.emit("doctor", {"findings": [f.as_dict() for f in findings]}, failures=broken)
    else:
        for finding in findings:
            print(f"{finding.state:8} {finding.topic:17} {finding.text}")
            if finding.remedy:
                print(f"{'':26} to fix: {finding.remedy}")
    if any(f.state == "broken" for f in findings):
        raise typer.Exit(1)
