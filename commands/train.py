"""The commands that pre-train, and store the image encoder's maps before."""

from __future__ import annotations

import json
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ..common import OlivineError, check_output
from . import console, defaults
from .defaults import RUNS
from .options import DryRun, Json

if TYPE_CHECKING:
    from ..train.settings import PretrainSettings


def register(app: typer.Typer) -> None:
    """Add the commands to the command line."""
    app.command()(features)
    app.command()(pretrain)


def features(
    shards: Annotated[
        Path | None, typer.Option(help="Shards (default: the largest train split in data/pairs, and val beside it).")
    ] = None,
    config: Annotated[
        str, typer.Option(help="A preset's name, a YAML file, or auto: its image section counts.")
    ] = "auto",
    set_: Annotated[list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Change a setting.")] = None,
    dtype: Annotated[str, typer.Option(help="float16, float32, or int8 with a scale for each map and channel.")] = (
        "float16"
    ),
    mirrored: Annotated[
        bool, typer.Option("--mirrored", help="The maps of mirrored images too, for runs with augment.flip_image.")
    ] = False,
    out: Annotated[Path | None, typer.Option(help="Folder of the stores (default: data/features).")] = None,
    part: Annotated[
        str, typer.Option("--part", metavar="I/N", help="Only the I-th of N parts of the work (from 0).")
    ] = "0/1",
    as_json: Json = False,
    dry_run: DryRun = False,
) -> None:
    """Store the image encoder's map of every image, for runs with image.stored.

    Example: olivine features --config olivine-dinov2
    """
    from ..pairs.shards import open_shards
    from ..train.settings import load_settings

    settings = load_settings(config, list(set_ or []))
    share = defaults.part(part)
    chosen, why = defaults.choose_shards(shards, "train")
    folders = [chosen]
    if shards is None and chosen.name == "train" and (chosen.parent / "val" / "manifest.json").is_file():
        folders.append(chosen.parent / "val")
    console.note(f"shards: {', '.join(map(str, folders))} ({why})", as_json)
    out = out or defaults.DATA / "features"
    check_output(out, inputs=(*folders, settings.image.weights), known=("*/features.json",))
    if dry_run:
        images = sum(len(found) * len(found.cameras) for found in map(open_shards, folders))
        return console.say_plan(f"maps of {images} images by {settings.image.encoder} as {dtype}", out, as_json)
    from ..train.encoders._store import store_all_maps

    summary = store_all_maps(folders, settings, out, dtype, mirrored=mirrored, part=share)
    console.finish("features", summary, out, as_json)


def pretrain(
    shards: Annotated[
        list[Path] | None,
        typer.Option(help="Training shards, again for several sets (default: the largest train split in data/pairs)."),
    ] = None,
    validation: Annotated[
        list[Path] | None,
        typer.Option(help="Held-out shards, again for several (default: the val folders beside them)."),
    ] = None,
    config: Annotated[str, typer.Option(help="A preset's name, a YAML file, or auto.")] = "auto",
    set_: Annotated[list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Change a setting.")] = None,
    engine: Annotated[
        str | None,
        typer.Option(help="Sparse engine: auto, torch, triton (a GPU) or minkowski (default: the preset's)."),
    ] = None,
    name: Annotated[str | None, typer.Option(help="Name of the run (default: the preset's).")] = None,
    out: Annotated[Path | None, typer.Option(help="Folder of the run (default: runs/<name>).")] = None,
    resume: Annotated[bool, typer.Option("--resume/--no-resume", help="Go on from the run's last checkpoint.")] = True,
    print_config: Annotated[bool, typer.Option("--print-config", help="Print every setting, and stop.")] = False,
    as_json: Json = False,
    dry_run: DryRun = False,
) -> None:
    """Distil the image encoder and the labels into a sparse 3D network.

    Example: olivine pretrain --config cpu --set run.epochs=20
    """
    from ..common.settings import settings_to_plain, settings_to_yaml
    from ..train.mixture import weights_of
    from ..train.settings import choose_preset, load_settings

    changes = list(set_ or [])
    if engine is not None:
        changes.append(f"backbone.engine={engine}")
    preset, why = choose_preset() if config == "auto" else (config, "as asked")
    console.note(f"preset: {preset} ({why})", as_json or print_config)

    def show(settings: PretrainSettings) -> None:
        if as_json:
            return console.emit("pretrain", {"settings": settings_to_plain(settings)})
        print(settings_to_yaml(settings), end="")

    if print_config and not shards:
        return show(load_settings(preset, changes))
    named = load_settings(preset, changes).data
    if not shards and named.shards is not None:
        weights, why, several = weights_of(named.shards), "data.shards", named.several
    else:
        chosen = [defaults.choose_shards(folder, "train") for folder in (shards or (None,))]
        weights, why, several = {str(folder): 1.0 for folder, _ in chosen}, chosen[0][1], len(chosen) > 1
        if len(weights) < len(chosen):
            raise OlivineError("names a folder twice", where="--shards", remedy="name each once")
    if validation:
        validation = [defaults.choose_shards(folder, "val")[0] for folder in validation]
    elif named.validation is not None:
        validation = [Path(path) for path in weights_of(named.validation)]
    elif any(change.partition("=")[0].strip() in ("data.validation", "validation") for change in changes):
        validation = []  # null was asked for
    else:
        beside = [Path(path).parent / "val" for path in weights if Path(path).name != "val"]
        validation = [path for path in beside if (path / "manifest.json").is_file()]
    changes += [f"data.shards={json.dumps(weights if several else str(*weights))}"]
    held_out = [str(path) for path in validation]
    if held_out:
        changes += [f"data.validation={json.dumps(held_out if several or len(held_out) > 1 else held_out[0])}"]
    settings = load_settings(preset, changes)
    if print_config:
        return show(settings)
    console.note(f"shards: {', '.join(weights)} ({why})", as_json)
    out = out or RUNS / (name or settings.name)
    check_output(out, inputs=(*weights, *held_out), known=("run.json", ".run.lock"))
    if dry_run:
        length = f"{settings.run.steps} steps" if settings.run.steps else f"{settings.run.epochs} epochs"
        what = f"a run of {length} of {settings.backbone.name}"
        if as_json:
            plan = {"plan": what, "workers": settings.data.workers, "processes": _divides_over(settings)}
            return console.emit("pretrain", plan, out)
        return console.say_plan(what, out, as_json)
    console.note(f"sparse engine: {_engine_of(settings)}", as_json)
    if settings.image.stored is not None and settings.augment.crop:
        lost = "the encoder saw them no larger than that, and what is around them (exact: augment.crop=false)"
        console.note(f"image features: crops are looked up in stored maps of whole images; {lost}", as_json)
    from ..pairs.shards import open_shards
    from ..train.loop import pretrain as run

    goes_on = "build-pairs is not finished (olivine status), and this run will not go on with the others"
    notes = [f"{lacks}; {goes_on}" for path in (*weights, *held_out) if (lacks := open_shards(path).lacks)]
    for note in notes:
        console.note(note, as_json)
    summary = run(settings, out, resume=resume)
    if summary.interrupted:
        raise KeyboardInterrupt
    if summary.resumed_from == summary.steps:
        done = f"{summary.steps:,} of {summary.steps:,} steps were made before"
        console.note(f"this run is finished: {done}. For another one give --name or --out", as_json)
    console.finish("pretrain", replace(summary, notes=(*notes, *summary.notes)), out, as_json)


def _divides_over(settings: PretrainSettings) -> list[int]:
    """The numbers of processes that a step's frames divide over."""
    from ..train.devices import share_of_step

    found = []
    for number in range(1, settings.run.batch + 1):
        with suppress(OlivineError):
            share_of_step(settings, 0, number)
            found.append(number)
    return found


def _engine_of(settings: PretrainSettings) -> str:
    """What computes a run's sparse convolutions, and why; an error in one line where that cannot be."""
    import torch

    from ..train.sparse.engines import choose_engine

    on_gpu = settings.run.accelerator in ("auto", "gpu", "cuda") and torch.cuda.is_available()
    return choose_engine(settings.backbone.engine, torch.device("cuda:0" if on_gpu else "cpu"))[1]
