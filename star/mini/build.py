"""The mini base as an untrained but ordinary ``StableDiffusion3Pipeline``: the classes of SD3.5 Medium at a small size.

64 x 64 pixels -> 16 x 16 latents of 4 channels -> 64 image tokens; 16 CLIP and 16 T5 columns of text.
"""

from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler, SD3Transformer2DModel, StableDiffusion3Pipeline
from transformers import CLIPTextModelWithProjection, T5Config, T5EncoderModel

from star.models.shapes import clip_config
from star.models.tokenizers import TEXT_LENGTH, clip_tokenizer, t5_tokenizer

TEXT_WIDTH = 128
CLIP = {
    "hidden_size": 64,
    "intermediate_size": 256,
    "projection_dim": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "max_position_embeddings": TEXT_LENGTH,
}


def untrained_pipeline(width: int = 160, blocks: int = 6) -> StableDiffusion3Pipeline:
    """The mini pipeline with random weights (from torch's global generator).

    Args:
        width: of the transformer; heads are 32 wide.
        blocks: number of joint blocks; the first third has the dual attention of SD3.5.
    """
    transformer = SD3Transformer2DModel(
        sample_size=16,
        patch_size=2,
        in_channels=4,
        out_channels=4,
        num_layers=blocks,
        num_attention_heads=width // 32,
        attention_head_dim=32,
        joint_attention_dim=TEXT_WIDTH,
        caption_projection_dim=width,
        pooled_projection_dim=TEXT_WIDTH,
        pos_embed_max_size=16,
        dual_attention_layers=tuple(range(blocks // 3)),
        qk_norm="rms_norm",
    )
    autoencoder = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        block_out_channels=(16, 32, 64),
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=8,
        sample_size=64,
        mid_block_add_attention=False,
        shift_factor=0.0,
        scaling_factor=1.0,
        use_quant_conv=False,
        use_post_quant_conv=False,
    )
    clip, t5 = clip_tokenizer(), t5_tokenizer()
    return StableDiffusion3Pipeline(
        transformer=transformer,
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
        vae=autoencoder,
        text_encoder=CLIPTextModelWithProjection(clip_config(clip, CLIP)),
        tokenizer=clip,
        text_encoder_2=CLIPTextModelWithProjection(clip_config(clip, CLIP)),
        tokenizer_2=clip_tokenizer(),
        text_encoder_3=T5EncoderModel(
            T5Config(
                vocab_size=len(t5),
                d_model=TEXT_WIDTH,
                d_kv=32,
                d_ff=2 * TEXT_WIDTH,
                num_layers=2,
                num_heads=4,
                dropout_rate=0.0,
            )
        ),
        tokenizer_3=t5,
    )
