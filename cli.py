"""The command line: it registers the commands and nothing else."""

from __future__ import annotations

from typing import Any

import typer

from . import __version__
from .commands import bench, cluster, console, data, detect, doctor, own_data, score, train, view
from .commands.options import in_groups

_OPTIONS: dict[str, Any] = {
    "no_args_is_help": True,
    "pretty_exceptions_enable": False,
    "context_settings": {"help_option_names": ["-h", "--help"]},
}
_COMMANDS = {
    "Data, labels, pairs": "synth init-rig import-bag check-data labelgen score-labels check-labels build-pairs",
    "Training": "features pretrain study",
    "What came of it": "probe finetune detect predict embed export import-weights report figures view",
    "Machines": "submit launch status doctor bench",
}
app = typer.Typer(
    name="olivine",
    help="Image-to-LiDAR distillation: label maps, point-pixel pairs, pre-training, proof.",
    add_completion=False,
    **_OPTIONS,
)
weights_app = typer.Typer(name="weights", help="The foundation models' weights: list, fetch, check.", **_OPTIONS)
app.add_typer(weights_app, rich_help_panel="Data, labels, pairs")
data.register(app, weights_app)
own_data.register(app)
train.register(app)
score.register(app)
view.register(app)
detect.register(app)
cluster.register(app)
doctor.register(app)
bench.register(app)
_panels = {name: panel for panel, names in _COMMANDS.items() for name in names.split()}
for _registered in app.registered_commands:
    assert _registered.callback is not None
    _registered.rich_help_panel = _panels[_registered.name or _registered.callback.__name__]
    _registered.callback = in_groups(_registered.callback)


def _say_version(asked: bool) -> None:
    if asked:
        print(f"olivine {__version__}")
        raise typer.Exit


@app.callback()
def _about(
    version: bool = typer.Option(
        False, "--version", help="Print the version, and stop.", is_eager=True, callback=_say_version
    ),
) -> None: ...


def main() -> None:
    """Run the command line."""
    console.run(app)


if __name__ == "__main__":
    main()
