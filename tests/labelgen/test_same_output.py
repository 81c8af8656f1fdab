"""grounded-sam and hf-grounded-sam with one set of weights, in each package's own layout: the same label maps.

The authors' checkpoints (random weights, reduced size) are renamed into what transformers publishes: SamModel and
GroundingDinoForObjectDetection load every tensor, strictly. So whoever has either may expect the other's labels.
"""

from __future__ import annotations

import re
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from safetensors.torch import save_file

from olivine.labelgen.pretrained import load_pretrained
from olivine.labelgen.run import generate_labels
from olivine.labelgen.settings import LabelSettings
from olivine.labelgen.store import open_store

pytest.importorskip("groundingdino", reason="groundingdino-py is not installed")
torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

# Of both detectors: the authors' name as a pattern, transformers' name.
DETECTOR = [
    (
        r"^backbone\.0\.norm(\d)",
        lambda m: f"model.backbone.conv_encoder.model.hidden_states_norms.stage{int(m[1]) + 1}",
    ),
    (r"^backbone\.0\.patch_embed\.proj", "model.backbone.conv_encoder.model.embeddings.patch_embeddings.projection"),
    (r"^backbone\.0\.patch_embed\.norm", "model.backbone.conv_encoder.model.embeddings.norm"),
    (r"^backbone\.0\.layers", "model.backbone.conv_encoder.model.encoder.layers"),
    (r"(blocks\.\d+\.)norm1", r"\1layernorm_before"),
    (r"(blocks\.\d+\.)norm2", r"\1layernorm_after"),
    (r"\.attn\.(relative\w+|qkv)", r".attention.self.\1"),
    (r"(blocks\.\d+\.)attn\.proj", r"\1attention.output.dense"),
    (r"\.mlp\.fc1", ".intermediate.dense"),
    (r"\.mlp\.fc2", ".output.dense"),
    (r"^bert", "model.text_backbone"),
    (r"^feat_map", "model.text_projection"),
    (r"^input_proj", "model.input_proj_vision"),
    (r"^transformer\.tgt_embed", "model.query_position_embeddings"),
    (r"^transformer\.enc_out_bbox_embed", "model.encoder_output_bbox_embed"),
    (r"^transformer\.", "model."),
    (r"ref_point_head", "reference_points_head"),
    (r"decoder\.norm", "decoder.layer_norm"),
    (r"encoder\.text_layers\.(\d+)\.", r"encoder.layers.\1.text_enhancer_layer."),
    (r"encoder\.fusion_layers\.(\d+)\.", r"encoder.layers.\1.fusion_layer."),
    (r"^(model\.encoder\.layers\.\d+\.)(self_attn|norm\d|linear\d)", r"\1deformable_layer.\2"),
    (r"(text_enhancer_layer\.)norm1", r"\1layer_norm_before"),
    (r"(text_enhancer_layer\.)norm2", r"\1layer_norm_after"),
    (r"(deformable_layer\.)norm1", r"\1self_attn_layer_norm"),
    (r"(deformable_layer\.)norm2", r"\1final_layer_norm"),
    (r"gamma_v", "vision_param"),
    (r"gamma_l", "text_param"),
    (r"layer_norm_v\b", "layer_norm_vision"),
    (r"layer_norm_l\b", "layer_norm_text"),
    (r"\b(values_|out_)?v_proj", r"\1vision_proj"),
    (r"\b(values_|out_)?l_proj", r"\1text_proj"),
    (r"(decoder\.layers\.\d+\.)cross_attn", r"\1encoder_attn"),
    (r"(decoder\.layers\.\d+\.)norm1", r"\1encoder_attn_layer_norm"),
    (r"(decoder\.layers\.\d+\.)norm2", r"\1self_attn_layer_norm"),
    (r"(decoder\.layers\.\d+\.)norm3", r"\1final_layer_norm"),
    (r"ca_text", "encoder_attn_text"),
    (r"catext_norm", "encoder_attn_text_layer_norm"),
    (r"\blinear(\d)", r"fc\1"),
]
SAM = [
    (r"^image_encoder", "vision_encoder"),
    (r"\bblocks\b", "layers"),
    (r"\.norm(\d|_)", r".layer_norm\1"),
    (r"patch_embed\.proj", "patch_embed.projection"),
    (r"neck\.0", "neck.conv1"),
    (r"neck\.1", "neck.layer_norm1"),
    (r"neck\.2", "neck.conv2"),
    (r"neck\.3", "neck.layer_norm2"),
    (r"((?:iou_prediction_head|mlps\.\d+)\.)layers\.0", r"\1proj_in"),
    (r"((?:iou_prediction_head|mlps\.\d+)\.)layers\.1", r"\1layers.0"),
    (r"((?:iou_prediction_head|mlps\.\d+)\.)layers\.2", r"\1proj_out"),
    (r"output_upscaling\.0", "upscale_conv1"),
    (r"output_upscaling\.1", "upscale_layer_norm"),
    (r"output_upscaling\.3", "upscale_conv2"),
    (r"mask_downscaling\.0", "mask_embed.conv1"),
    (r"mask_downscaling\.1", "mask_embed.layer_norm1"),
    (r"mask_downscaling\.3", "mask_embed.conv2"),
    (r"mask_downscaling\.4", "mask_embed.layer_norm2"),
    (r"mask_downscaling\.6", "mask_embed.conv3"),
    (r"point_embeddings", "point_embed"),
    (r"pe_layer\.positional_encoding_gaussian_matrix", "shared_embedding.positional_embedding"),
]


def _renamed(state, table):
    """The same tensors under transformers' names; joined query, key and value apart where those are."""
    found = {}
    for name, value in state.items():
        for pattern, new in table:
            name = re.sub(pattern, new, name)
        joined = re.search(r"self\.qkv\.|in_proj_", name)
        if joined and table is DETECTOR:
            for part, piece in zip(("query", "key", "value"), value.chunk(3)):
                found[name.replace("qkv", part).replace("in_proj_", f"{part}.")] = piece.clone()
        else:
            found[name] = value
    return found


@pytest.fixture(scope="module")
def renamed(tiny_networks, tmp_path_factory):
    """Folders of transformers' models with the weights of ``tiny_networks``."""
    folder = tmp_path_factory.mktemp("renamed")
    shutil.copytree(tiny_networks.text_encoder, folder / "detector")
    text = transformers.BertConfig.from_pretrained(tiny_networks.text_encoder)
    swin = transformers.SwinConfig(
        embed_dim=96, depths=[2, 2, 6, 2], num_heads=[3, 6, 12, 24], window_size=7,
        out_features=["stage2", "stage3", "stage4"],
    )  # fmt: skip
    config = transformers.GroundingDinoConfig(
        backbone_config=swin, text_config=text.to_dict(), encoder_layers=1, decoder_layers=2, num_queries=12,
        encoder_ffn_dim=64, decoder_ffn_dim=64,
    )  # fmt: skip
    state = _renamed(torch.load(tiny_networks.detector_checkpoint, weights_only=True)["model"], DETECTOR)
    _save(config, {name: value for name, value in state.items() if ".pooler." not in name}, folder / "detector")
    sam = transformers.SamConfig(
        vision_config=transformers.SamVisionConfig(
            hidden_size=64, num_hidden_layers=2, num_attention_heads=2, image_size=256, global_attn_indexes=[1],
            window_size=7, mlp_dim=256, num_pos_feats=128,
        ),
        prompt_encoder_config=transformers.SamPromptEncoderConfig(image_size=256),
        mask_decoder_config=transformers.SamMaskDecoderConfig(mlp_dim=128),
    )  # fmt: skip
    state = _renamed(torch.load(tiny_networks.sam_checkpoint, weights_only=True), SAM)
    state["shared_image_embedding.positional_embedding"] = state["prompt_encoder.shared_embedding.positional_embedding"]
    _save(sam, {name: value for name, value in state.items() if not name.startswith("pixel_")}, folder / "sam")
    for kind, part in ((transformers.GroundingDinoForObjectDetection, "detector"), (transformers.SamModel, "sam")):
        _, extra = load_pretrained(kind.from_pretrained, folder / part, part)  # which refuses what is missing
        assert not extra
    return folder


def _save(config, state, folder: Path) -> None:
    """What the hub has: a configuration, and the tensors under the names of transformers 4."""
    config.save_pretrained(folder)
    tensors = {name: value.clone().contiguous() for name, value in state.items()}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


@pytest.mark.soak
@pytest.mark.frames("synthetic")
def test_both_labelers_draw_the_same_maps_from_the_same_weights(
    tiny_networks, renamed: Path, keyframe_index, tmp_path: Path
) -> None:
    shared = LabelSettings(
        "grounded-sam", short_side=160, long_side=320, device="cpu", precision="float32", batch_size=3
    )
    original = replace(
        shared,
        detector_config=tiny_networks.detector_config,
        detector_checkpoint=tiny_networks.detector_checkpoint,
        sam_checkpoint=tiny_networks.sam_checkpoint,
        text_encoder=tiny_networks.text_encoder,
    )
    hugging = replace(
        shared, labeler="hf-grounded-sam", detector_checkpoint=renamed / "detector", sam_checkpoint=renamed / "sam"
    )
    stores = []
    for name, settings in (("original", original), ("hugging", hugging)):
        summary = generate_labels(keyframe_index, tmp_path / name, settings)
        assert summary.images == 6 and summary.detections > 6 and not summary.failures
        stores.append((summary, open_store(tmp_path / name)))
    assert stores[0][0].detections == stores[1][0].detections
    labelled = differing = 0
    for camera in next(keyframe_index.frames()).cameras:
        a, b = (store.label_map(camera) for _, store in stores)
        labelled += np.count_nonzero(a)
        differing += np.count_nonzero(a != b)
    # Other kernels add in another order: a mask's border may move by a pixel.
    assert labelled > 100_000
    assert differing < 1e-3 * labelled, f"{differing} of {labelled} labelled pixels differ"
