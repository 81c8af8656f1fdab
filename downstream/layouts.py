"""Every conversion between this package's parameters and the files of other code bases.

| layout | container | names and shapes |
|---|---|---|
| `olivine`, `state_dict` (export) | plain dictionary | this package's: kernels [K, in, out], norms under `.bn` |
| `slidr` | `model_points` | the same names, one head (`final`), no prefix |
| `olivine-lightning` | `state_dict` | the same names with the prefix `model_points.` |
| `minkowski` (export) | `model_points` | as `slidr`, with both heads where there are two |
| `waffleiron` | `model_point` (ScaLR's pre-training), `net`; exports have both | this package's, the head as `classif`, a 1D convolution |
| `openpcdet` | `model_state` | `backbone_3d.…`, kernels [out, z, y, x, in], norms without `.bn`, no heads |
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from ..common import OlivineError, PathLike
from ..common.tensors import check_finite, check_state, read_tensors, write_tensors
from ..train.backbones.voxelnet import VoxelNet
from ..train.sparse.modules import BatchNorm, Conv3d, ConvTranspose3d

Weights = dict[str, Tensor]
#: Layouts that :func:`export_weights` writes.
EXPORT_LAYOUTS = ("minkowski", "openpcdet", "waffleiron", "state_dict")

_LIGHTNING, _OPENPCDET = "model_points.", "backbone_3d."
_HEADS = ("final.", "final_class_level.")


def read_weights(path: PathLike) -> tuple[str, Weights]:
    """The 3D network's parameters in a file of any layout of the module's table, and the layout's name.

    Prefixes are removed; kernels are as stored. Only tensors and plain values are unpickled.

    Raises:
        OlivineError: no such file, not a checkpoint, or no 3D network in it.
    """
    content = read_tensors(path, "re-save its tensors with torch.save, or download it again")
    return find_weights(content, where=path)


def find_weights(content: Any, *, where: object) -> tuple[str, Weights]:
    """As :func:`read_weights`, of a checkpoint's content.

    Raises:
        OlivineError: no 3D network in it.
    """
    if isinstance(content, dict):
        for container, layout, prefix in (
            ("model_points", "slidr", ""),
            ("state_dict", "olivine-lightning", _LIGHTNING),
            ("model_point", "waffleiron", ""),
            ("net", "waffleiron", ""),
            ("model_state", "openpcdet", _OPENPCDET),
        ):
            inner = content.get(container)
            if isinstance(inner, dict):
                found = {_bare(n)[len(prefix) :]: t for n, t in inner.items() if _bare(n).startswith(prefix)}
                if found:
                    return layout, _tensors(found, where)
        if content and all(isinstance(value, Tensor) for value in content.values()):
            names = {_bare(n): t for n, t in content.items()}
            for layout, prefix in (("olivine-lightning", _LIGHTNING), ("openpcdet", _OPENPCDET)):
                if any(n.startswith(prefix) for n in names):
                    return layout, {n[len(prefix) :]: t for n, t in names.items() if n.startswith(prefix)}
            return "olivine", names
    kind = f"keys {', '.join(map(str, list(content)[:6]))}" if isinstance(content, dict) else type(content).__name__
    raise OlivineError(
        f"no 3D network in it ({kind})",
        where=where,
        remedy="give a file with model_points (SLidR), model_point (ScaLR), state_dict (OLIVINE) or model_state (OpenPCDet)",
    )


def _bare(name: str) -> str:
    # What data-parallel wrappers put in front of every name.
    return name.removeprefix("module.")


def _tensors(weights: dict[str, Any], where: object) -> Weights:
    for name, value in weights.items():
        if not isinstance(value, Tensor):
            raise OlivineError(f"{name} is a {type(value).__name__}, not a tensor", where=where)
    return weights


def own_layout(network: nn.Module) -> str:
    """The layout of the code base that a network comes from: ``minkowski`` for U-Nets, ``openpcdet`` for trunks …

    ``state_dict`` for a network that no code base has.
    """
    if any(name.startswith("waffleiron.") for name in network.state_dict()):
        return "waffleiron"
    trunk = {name for name in network.state_dict() if not name.startswith(_HEADS)}
    if isinstance(network, VoxelNet) and trunk == set(_openpcdet_names(network)):
        return "openpcdet"
    return "minkowski" if any(isinstance(m, ConvTranspose3d) for m in network.modules()) else "state_dict"


def split_heads(weights: Weights) -> tuple[Weights, Weights]:
    """The trunk's tensors and the heads' (``final…``), which no backbone owns."""
    heads = {name: tensor for name, tensor in weights.items() if name.startswith(_HEADS)}
    return {name: tensor for name, tensor in weights.items() if name not in heads}, heads


def load_weights(network: nn.Module, weights: Weights, *, layout: str = "olivine", where: object) -> Weights:
    """Put weights of any layout into a backbone, all of them or none.

    Args:
        network: one of this package's backbones.
        weights: as :func:`read_weights` gives them.
        layout: their layout.
        where: the file, for errors.

    Returns:
        The heads that were among them, by their names in the file.

    Raises:
        OlivineError: a name is missing or extra, or a shape differs; the first is named with both shapes.
    """
    own = network.state_dict()
    if layout == "openpcdet":
        weights = from_openpcdet(weights, network)
    elif layout == "waffleiron":
        weights = from_waffleiron(weights, where)
    converted, heads = split_heads(dict(weights))
    # A network that ends in a layer ``final`` of its own takes that one.
    converted |= {name: heads.pop(name) for name in own if name in heads}
    # A norm's counter is absent from some exports and changes nothing: momenta are fixed.
    counters = {n: t for n, t in own.items() if n not in converted and n.endswith("num_batches_tracked")}
    check_state(own, {**counters, **converted}, where, "choose the backbone that the file was made with")
    check_finite(heads, where)
    network.load_state_dict({**own, **converted})
    return heads


def export_weights(network: nn.Module, path: PathLike, layout: str, heads: Weights | None = None) -> list[str]:
    """Write a network's weights in another code base's layout.

    ``minkowski``: a file that SLidR's and OLIVINE's loaders read (``model_points``). ``openpcdet``: a file whose
    ``model_state`` OpenPCDet's detectors with that trunk load as pre-trained weights; it has no place for the heads.
    ``waffleiron``: a file that WaffleIron's code (``net``) and ScaLR's ``--pretrained_ckpt`` (``model_point``) read.
    ``state_dict``: the tensors by this package's names and no more, for any network.

    Args:
        heads: the method's point heads by their names in such files (``final.kernel`` …).

    Returns:
        The names of the parameters that the layout has no place for.

    Raises:
        OlivineError: an unknown layout, or one that is not this network's.
    """
    heads = {name: tensor.detach().cpu() for name, tensor in (heads or {}).items()}
    state = {name: tensor.detach().cpu() for name, tensor in network.state_dict().items()} | heads
    if layout not in EXPORT_LAYOUTS:
        raise OlivineError(f"no layout {layout!r}", remedy=f"choose one of {', '.join(EXPORT_LAYOUTS)}")
    own = own_layout(network)
    if layout not in (own, "state_dict"):
        raise OlivineError(
            f"a {type(network).__name__} has no form in the layout {layout}", remedy=f"use --layout {own}"
        )
    if layout == "state_dict":
        content: dict[str, Any] = dict(state)
    elif layout == "minkowski":
        content = {"model_points": state}
    elif layout == "waffleiron":
        whole = {name: tensor for name, tensor in state.items() if name not in heads} | _to_classif(heads)
        content = {"net": whole, "model_point": whole}
    else:
        content = {"model_state": {_OPENPCDET + name: tensor for name, tensor in to_openpcdet(network).items()}}
    write_tensors(path, content)
    if layout == "waffleiron":
        return [name for name in heads if not name.startswith("final.")]
    return [name for name in state if name.startswith(_HEADS)] if layout == "openpcdet" else []


def _to_classif(heads: Weights) -> Weights:
    """A head [in, out], [1, out] as WaffleIron's 1D convolution, where there is one."""
    found = {}
    if "final.kernel" in heads:
        found = {"classif.weight": heads["final.kernel"].T[:, :, None].contiguous()}
    if "final.bias" in heads:
        found["classif.bias"] = heads["final.bias"].flatten()
    return found


def from_waffleiron(weights: Weights, where: object) -> Weights:
    """The parameters of WaffleIron's or ScaLR's network, its ``classif`` as a head ``final``.

    ScaLR's probe and fine-tuning have a batch norm before it: such a head has no place here and is left out.

    Raises:
        OlivineError: the network of ScaLR+, which has other activations between the same parameters.
    """
    if "classif.0.weight" in weights and "classif.0.running_mean" not in weights:
        raise OlivineError(
            "holds the network of ScaLR+ (GELU, an MLP as head), which is another one",
            where=where,
            remedy="give a checkpoint of ScaLR or WaffleIron",
        )
    converted = {name: tensor for name, tensor in weights.items() if not name.startswith("classif.")}
    if "classif.weight" in weights:
        converted["final.kernel"] = weights["classif.weight"].flatten(1).T.contiguous()
        converted["final.bias"] = weights["classif.bias"][None]
    return converted


def to_openpcdet(network: nn.Module) -> Weights:
    """A VoxelNet's trunk with OpenPCDet's names and spconv 2's kernels [out, z, y, x, in], without prefix."""
    state = network.state_dict()
    return {
        theirs: _to_spconv(state[ours], network, ours).detach().cpu().clone()
        for ours, theirs in _openpcdet_names(network).items()
    }


def from_openpcdet(weights: Weights, network: nn.Module) -> Weights:
    """The inverse of :func:`to_openpcdet`; names it does not know stay as they are."""
    own = network.state_dict()
    back = {theirs: ours for ours, theirs in _openpcdet_names(network).items()}
    converted = {}
    for name, tensor in weights.items():
        ours = back.get(name, name)
        owner = network.get_submodule(ours.rpartition(".")[0]) if ours in own else None
        if isinstance(owner, Conv3d) and tensor.ndim == 5:
            # The published checkpoints are of spconv 1, whose kernels are [z, y, x, in, out].
            first = tensor.shape[0] != owner.out_channels and tensor.shape[4] == owner.out_channels
            tensor = _from_spconv(tensor.permute(4, 0, 1, 2, 3) if first else tensor)
        elif isinstance(owner, Conv3d) and tensor.ndim == 1:
            tensor = tensor[None]
        converted[ours] = tensor
    return converted


def _openpcdet_names(network: nn.Module) -> dict[str, str]:
    names: dict[str, str] = {}
    for prefix, module in network.named_modules():
        if f"{prefix}.".startswith(_HEADS):
            continue
        if isinstance(module, BatchNorm):
            names |= {f"{prefix}.bn.{name}": f"{prefix}.{name}" for name in module.bn.state_dict()}
        elif isinstance(module, Conv3d):
            names[f"{prefix}.kernel"] = f"{prefix}.weight"
            if module.bias is not None:
                names[f"{prefix}.bias"] = f"{prefix}.bias"
    return names


def _to_spconv(tensor: Tensor, network: nn.Module, name: str) -> Tensor:
    owner = network.get_submodule(name.rpartition(".")[0])
    if not isinstance(owner, Conv3d):
        return tensor
    if name.endswith(".bias"):
        return tensor.reshape(-1)
    x, y, z = owner.shape.kernel_size
    # The kernel's cells run with x fastest, so their index unfolds to (z, y, x).
    return tensor.reshape(z, y, x, owner.in_channels, owner.out_channels).permute(4, 0, 1, 2, 3).contiguous()


def _from_spconv(weight: Tensor) -> Tensor:
    out_channels, z, y, x, in_channels = weight.shape
    return weight.permute(1, 2, 3, 4, 0).reshape(z * y * x, in_channels, out_channels).contiguous()
