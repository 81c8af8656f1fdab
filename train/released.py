"""The first released form of settings, run folders and checkpoints, read as today's. The one place that knows it.

In that form OLIVINE was the only method: its settings stood in the sections ``loss`` and ``sampling``, and its point heads
in the backbone. A run begun then goes on to the same bits.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

#: A key of the released form, and today's.
KEYS = {
    **{
        f"loss.{key}": f"method.{key}"
        for key in (
            "wcd", "scr", "ppkt_weight", "wcd_weight", "scr_weight", "temperature", "wcd_form", "decoupled_heads",
            "distribution", "kl_average", "warmup", "freeze", "alpha", "bias_correction", "background",
        )
    },
    **{f"sampling.{key}": f"method.{key}" for key in ("pairs", "mode", "frequency", "density")},
    "backbone.out_channels": "method.dimension",
}  # fmt: skip
_SECTIONS = ("loss", "sampling")


def modern(plain: Mapping[str, Any]) -> dict[str, Any]:
    """Nested settings in today's form; those that are, as they are."""
    changed = {key: dict(value) if isinstance(value, Mapping) else value for key, value in plain.items()}
    for old, new in KEYS.items():
        section, _, key = old.partition(".")
        if isinstance(changed.get(section), dict) and key in changed[section]:
            if not isinstance(changed.setdefault("method", {}), dict):
                break  # the reader of settings says what is wrong with it
            changed["method"].setdefault(new.partition(".")[2], changed[section].pop(key))
    for section in _SECTIONS:
        if changed.get(section) == {}:
            del changed[section]
    backbone = changed.get("backbone")
    if isinstance(backbone, dict) and backbone.get("name") == "voxelnet-residual":
        changed["backbone"] = {**backbone, "name": "voxelnet", "residual": True}
    return changed


def modern_changes(change: str) -> list[str]:
    """A ``key=value`` in today's form: one change, or two."""
    key, separator, value = change.partition("=")
    if key.strip() == "backbone.name" and value.strip() == "voxelnet-residual":
        return ["backbone.name=voxelnet", "backbone.residual=true"]
    return [f"{KEYS.get(key.strip(), key)}{separator}{value}"]


def modern_checkpoint(content: dict[str, Any]) -> dict[str, Any]:
    """A checkpoint's content in today's form.

    The heads move from the backbone to the method; the order of parameters, and so the optimiser's state, stays.
    """
    if "backbone_state" not in content or "method_state" in content:
        return content
    content = dict(content)
    content["settings"] = _settings_of_run(content.get("settings", {}))
    backbone = dict(content["backbone"])
    backbone.pop("out_channels", None)
    if backbone["name"] == "voxelnet-residual":
        backbone |= {"name": "voxelnet", "residual": True}
    content["backbone"] = backbone
    state: dict[str, Any] = {}
    heads: dict[str, Any] = {}
    for name, tensor in content["backbone_state"].items():
        (heads if name.startswith(("final.", "final_class_level.")) else state)[name] = tensor
    renamed = {"final": "point_head", "final_class_level": "category_point_head"}
    pixel = {"point_pixel": "pixel_head", "category": "category_pixel_head"}
    method = {_renamed(name, renamed): tensor for name, tensor in heads.items()}
    method |= {_renamed(name, pixel): tensor for name, tensor in content.pop("heads_state", {}).items()}
    method |= {f"statistics.{name}": tensor for name, tensor in content.pop("vmf_state", {}).items()}
    if not content["settings"].get("method", {}).get("decoupled_heads", True):
        method = {name: tensor for name, tensor in method.items() if not name.startswith("category_point_head.")}
    if "statistics.update_count" in method:  # a class was in use from its first pair on
        method["statistics.place_count"] = 2 * method["statistics.update_count"]
    if backbone["name"].startswith("srunet"):
        backbone.setdefault("first_weights", "kaiming")
    content |= {"backbone_state": state, "method_state": method, "exported_heads": renamed}
    content.pop("random_state", None)
    return content


def modern_run(identity: dict[str, Any]) -> dict[str, Any]:
    """A ``run.json`` in today's form."""
    return {**identity, "settings": _settings_of_run(identity["settings"])}


def _settings_of_run(settings: Mapping[str, Any]) -> dict[str, Any]:
    """A run's settings, all of them written out: what was not a setting then has the value that it had."""
    off = {"beams": 0.0, "range_noise": 0.0, "intensity_off": 0.0}
    if "backbone" not in settings:  # a fine-tuning's or a probe's
        absent = {"labels": "truth", "head": "new", "sure": 0.9, "layer_decay": 1.0, "part": 0}
        return {**absent, **dict.fromkeys(("least_score", "scale", "drop_path"), 0.0), **off, **settings}
    plain = modern(settings)
    method = plain.setdefault("method", {})
    method.setdefault("name", "olivine")
    method.setdefault("class_mean", "batch")
    if method["name"] == "olivine":
        method.setdefault("scored_draw", False)
        method.setdefault("draw_labels", "read")
        method.setdefault("least_score", 0.0)
        method.setdefault("weigh_pairs", "alike")
    plain.get("run", {}).setdefault("float32_products", "tf32x3")  # it was at least as exact
    plain["augment"] = {"cuboid_keeps": "full images", **off, **plain.get("augment", {})}
    if str(plain.get("backbone", {}).get("name", "srunet")).startswith("srunet"):
        plain.setdefault("backbone", {}).setdefault("first_weights", "kaiming")
    return plain


def _renamed(name: str, table: Mapping[str, str]) -> str:
    first, _, rest = name.partition(".")
    return f"{table.get(first, first)}.{rest}"
