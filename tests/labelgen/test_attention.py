"""The two rewritten attentions against the packages' own."""

from __future__ import annotations

import pytest
import torch

from olivine.labelgen.attention import BiasedAttention, compiled_deformable_attention, deformable_attention


@pytest.mark.parametrize("rows", [1, 3, 100])
def test_biased_attention_is_segment_anythings(rows):
    image_encoder = pytest.importorskip("segment_anything.modeling.image_encoder")
    torch.manual_seed(0)
    own = image_encoder.Attention(48, 4, True, True, True, (10, 8)).eval()
    torch.nn.init.normal_(own.rel_pos_h, 0, 0.5)
    torch.nn.init.normal_(own.rel_pos_w, 0, 0.5)
    x = torch.randn(3, 10, 8, 48)
    with torch.inference_mode():
        assert torch.allclose(BiasedAttention(own, rows)(x), own(x), atol=1e-5)


@pytest.mark.parametrize("batch", [1, 2])
def test_deformable_attention_is_groundingdinos_own_also_outside_the_image(batch):
    theirs = pytest.importorskip(
        "groundingdino.models.GroundingDINO.ms_deform_attn"
    ).multi_scale_deformable_attn_pytorch
    torch.manual_seed(0)
    shapes = torch.tensor([[9, 13], [5, 7], [1, 2]])
    value = torch.randn(batch, int(shapes.prod(1).sum()), 4, 16)
    location = torch.rand(batch, 50, 4, 3, 4, 2) * 1.6 - 0.3
    weight = torch.softmax(torch.randn(batch, 50, 4, 12), -1).view(batch, 50, 4, 3, 4)
    ours = deformable_attention(value, shapes, location, weight)
    assert torch.allclose(ours, theirs(value, shapes, location, weight), atol=1e-5)
    assert torch.equal(ours, deformable_attention(value, shapes, location, weight))


def test_the_packages_code_is_put_back_also_after_an_error():
    module = pytest.importorskip("groundingdino.models.GroundingDINO.ms_deform_attn")
    before = module.multi_scale_deformable_attn_pytorch
    with pytest.raises(RuntimeError), compiled_deformable_attention(torch.device("cpu")):
        assert module.multi_scale_deformable_attn_pytorch is deformable_attention
        raise RuntimeError
    assert module.multi_scale_deformable_attn_pytorch is before
