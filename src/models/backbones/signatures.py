"""By which of its keys a weights file tells whose it is: for the sentence that a user reads who gave another file."""

from collections.abc import Mapping

Shape = tuple[int, ...]

# Keys and shapes as the published files have them, by the name of the backbone in conf/backbone. Names that share an
# entry share all keys. Of the entries that fit, the longest is the most particular.
_SIGNATURES: dict[tuple[str, ...], dict[str, Shape]] = {
    ("conch",): {"visual.attn_pool_contrast.query": (1, 512), "visual.proj_contrast": (512, 512)},
    ("conch_v1_5",): {"attn_pool_contrast.to_kv.weight": (1536, 1024), "trunk.blocks.23.ls1.gamma": (1024,)},
    ("uni",): {"pos_embed": (1, 197, 1024), "blocks.23.ls1.gamma": (1024,)},
    ("uni2_h",): {"reg_token": (1, 8, 1536), "blocks.23.mlp.fc1.weight": (8192, 1536)},
    ("virchow",): {"pos_embed": (1, 257, 1280), "blocks.31.mlp.fc1.weight": (6832, 1280)},
    ("virchow2",): {"reg_token": (1, 4, 1280), "blocks.31.mlp.fc1.weight": (6832, 1280)},
    ("gigapath",): {"pos_embed": (1, 197, 1536), "blocks.39.ls1.gamma": (1536,)},
    ("h_optimus_0", "h_optimus_1"): {"reg_token": (1, 4, 1536), "blocks.39.ls1.gamma": (1536,)},
    ("phikon",): {"embeddings.position_embeddings": (1, 197, 768), "encoder.layer.11.layernorm_before.weight": (768,)},
    ("phikon_v2",): {
        "embeddings.position_embeddings": (1, 197, 1024),
        "encoder.layer.23.layer_scale1.lambda1": (1024,),
    },
    ("dinov2_vitb14",): {"pos_embed": (1, 1370, 768), "blocks.11.ls1.gamma": (768,)},
    ("dinobloom_b",): {"backbone.pos_embed": (1, 257, 768), "backbone.blocks.11.ls1.gamma": (768,)},
    ("panderm",): {"encoder.pos_embed": (1, 197, 1024), "encoder.blocks.23.gamma_1": (1024,)},
    ("panderm_base",): {"pos_embed": (1, 197, 768), "blocks.11.gamma_1": (768,)},
    ("dermlip_panderm",): {"visual.pos_embed": (1, 197, 768), "visual.head.weight": (512, 768)},
    ("clip_rn50",): {"visual.layer4.2.conv3.weight": (2048, 512, 1, 1), "visual.attnpool.c_proj.weight": (1024, 2048)},
    ("clip_vitb16", "dermlip_vitb16"): {"visual.conv1.weight": (768, 3, 16, 16), "visual.proj": (768, 512)},
    ("clip_vitl14",): {"visual.conv1.weight": (1024, 3, 14, 14), "visual.proj": (1024, 768)},
    ("plip",): {
        "vision_model.embeddings.patch_embedding.weight": (768, 3, 32, 32),
        "visual_projection.weight": (512, 768),
    },
    ("biomedclip",): {"visual.trunk.pos_embed": (1, 197, 768), "visual.head.proj.weight": (512, 768)},
    ("maple_clip_vitb16",): {
        "prompt_learner.compound_prompt_projections.0.weight": (768, 512),
        "image_encoder.conv1.weight": (768, 3, 16, 16),
    },
    ("mammo_clip_b5",): {
        "image_encoder._conv_stem.weight": (48, 3, 3, 3),
        "image_encoder._conv_head.weight": (2048, 512, 1, 1),
    },
    ("medclip_resnet50",): {"vision_model.model.fc.weight": (512, 2048)},
    ("medclip_vit",): {"vision_model.projection_head.weight": (512, 768)},
    ("resnet50",): {"conv1.weight": (64, 3, 7, 7), "layer3.5.conv3.weight": (1024, 256, 1, 1)},
}


def guess_encoders(shapes: Mapping[str, Shape]) -> tuple[str, ...]:
    """Returns the backbones whose keys a weights file has; several where they share all keys, none when unknown.

    Args:
        shapes: of the tensors in the file, by key.
    """
    fitting = [
        (len(signature), names)
        for names, signature in _SIGNATURES.items()
        if all(shapes.get(key) == shape for key, shape in signature.items())
    ]
    return max(fitting, default=(0, ()))[1]
