import numpy as np
import pytest
import torch
from tiny_clip import SIDE, save_tiny_clip
from tiny_detector import image_of

from evaluators.geneval.official.clips import OpenClip, TransformersClip
from evaluators.geneval.official.colors import Colors
from evaluators.geneval.rules import Detection
from star.common.errors import UserError

open_clip = pytest.importorskip("open_clip")


@pytest.fixture(scope="module")
def ours(tmp_path_factory):
    return TransformersClip(save_tiny_clip(tmp_path_factory.mktemp("clip") / "random_clip"))


def open_clip_model(model, quick_gelu=True):
    """A transformers CLIP as a model of open_clip, with the same weights."""
    text, vision = model.config.text_config, model.config.vision_config
    theirs = open_clip.CLIP(
        embed_dim=model.config.projection_dim,
        vision_cfg={
            "layers": vision.num_hidden_layers,
            "width": vision.hidden_size,
            "head_width": vision.hidden_size // vision.num_attention_heads,
            "mlp_ratio": vision.intermediate_size / vision.hidden_size,
            "patch_size": vision.patch_size,
            "image_size": vision.image_size,
        },
        text_cfg={
            "context_length": text.max_position_embeddings,
            "vocab_size": text.vocab_size,
            "width": text.hidden_size,
            "heads": text.num_attention_heads,
            "layers": text.num_hidden_layers,
            "mlp_ratio": text.intermediate_size / text.hidden_size,
            "pool_type": "eos",  # open_clip takes the largest id for the end, which it is not in the tiny vocabulary
            "eos_id": text.eos_token_id,
        },
        quick_gelu=quick_gelu,
    )
    weights = {name: value for name, value in model.state_dict().items() if not name.endswith("position_ids")}
    state = {
        "logit_scale": weights["logit_scale"],
        "positional_embedding": weights["text_model.embeddings.position_embedding.weight"],
        "token_embedding.weight": weights["text_model.embeddings.token_embedding.weight"],
        "text_projection": weights["text_projection.weight"].T,
        "visual.class_embedding": weights["vision_model.embeddings.class_embedding"],
        "visual.conv1.weight": weights["vision_model.embeddings.patch_embedding.weight"],
        "visual.positional_embedding": weights["vision_model.embeddings.position_embedding.weight"],
        "visual.proj": weights["visual_projection.weight"].T,
    }
    towers = (
        ("text_model", "", "final_layer_norm", "ln_final"),
        ("vision_model", "visual.", "post_layernorm", "visual.ln_post"),
    )
    for tower, prefix, norm, theirs_norm in towers:
        state |= {f"{theirs_norm}.{kind}": weights[f"{tower}.{norm}.{kind}"] for kind in ("weight", "bias")}
        for i in range(2):
            layer, block = f"{tower}.encoder.layers.{i}", f"{prefix}transformer.resblocks.{i}"
            for kind in ("weight", "bias"):
                fused = [weights[f"{layer}.self_attn.{part}_proj.{kind}"] for part in "qkv"]
                state[f"{block}.attn.in_proj_{kind}"] = torch.cat(fused)
                for name, origin in {
                    "attn.out_proj": "self_attn.out_proj",
                    "ln_1": "layer_norm1",
                    "ln_2": "layer_norm2",
                    "mlp.c_fc": "mlp.fc1",
                    "mlp.c_proj": "mlp.fc2",
                }.items():
                    state[f"{block}.{name}.{kind}"] = weights[f"{layer}.{origin}.{kind}"]
    for kind in ("weight", "bias"):
        state[f"visual.ln_pre.{kind}"] = weights[f"vision_model.pre_layrnorm.{kind}"]
    theirs.load_state_dict(state)
    return theirs


def test_both_name_the_same_colors(ours):
    def tokens(texts):
        """Ids filled up with zeros, as open_clip does it."""
        length = ours.model.config.text_config.max_position_embeddings
        ids = [ours._tokenizer(text, truncation=True, max_length=length).input_ids for text in texts]
        return torch.tensor([row + [0] * (length - len(row)) for row in ids])

    theirs = OpenClip(open_clip_model(ours.model), tokens, "tiny")
    assert theirs.side == SIDE
    texts = ["a photo of a red circle", "a photo of a blue object"]
    assert torch.allclose(ours.texts(texts), theirs.texts(texts), atol=1e-4)
    batch = torch.randn(3, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(0))
    assert torch.allclose(ours.pictures(batch), theirs.pictures(batch), atol=1e-4)
    rng = np.random.default_rng(0)
    named = []
    for seed in range(30):
        image = image_of(seed, 60, 80)
        detection = Detection((5.0, 5.0, 70.0, 50.0), 1.0, mask=rng.random((60, 80)) < 0.7)
        first, second = (Colors(clip)(image, "circle", [detection]) for clip in (ours, theirs))
        assert first == second
        named += first
    assert len(set(named)) > 1


def test_the_ordinary_gelu_is_refused(ours):
    with pytest.raises(UserError, match="has the activation gelu, but OpenAI's has quick_gelu"):
        OpenClip(open_clip_model(ours.model, quick_gelu=False), None, "tiny")
    published = open_clip.get_model_config("ViT-L-14-quickgelu")
    assert published["quick_gelu"] and published["vision_cfg"]["image_size"] == 224
