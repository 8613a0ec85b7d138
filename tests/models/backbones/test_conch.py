"""CONCH from its published files: whole on the meta device, and by two blocks against its description written anew."""

import h5py
import numpy as np
import pytest
import torch
import torch.nn.functional as F

from src import config
from src.data.slides.slide_files import open_slide_images
from src.data.slides.slide_writer import write_slide
from src.models.backbones.conch_backbone import ConchBackbone
from src.runs.rundir import RunDir
from src.tasks import embed
from tests.models.backbones.images import prepared
from tests.models.backbones.published_keys import published_shapes, random_weights
from tests.models.backbones.written_vit import attend, linear, norm, vit_tokens

config.register_resolvers()
CLIP = {"mean": [0.48145466, 0.4578275, 0.40821073], "std": [0.26862954, 0.26130258, 0.27577711]}
DEPTH = 2


@pytest.fixture(scope="module")
def conch(tmp_path_factory):
    weights = random_weights(published_shapes("conch", DEPTH))
    path = tmp_path_factory.mktemp("conch") / "pytorch_model.bin"
    torch.save(weights, path)
    return path, {key.removeprefix("visual."): value for key, value in weights.items() if key.startswith("visual.")}


def below(weights, prefix):
    return {key.removeprefix(prefix): value for key, value in weights.items() if key.startswith(prefix)}


def assert_close(given, expected):
    torch.testing.assert_close(given, expected, rtol=1e-5, atol=1e-5 * float(expected.abs().max()))


@pytest.mark.slow
@torch.no_grad()
def test_v1_gives_tokens_features_and_projection_of_its_description(conch):
    path, w = conch
    backbone = ConchBackbone("b", checkpoint=str(path), image_size=448, model_args={"depth": DEPTH}, **CLIP)
    x = prepared(backbone, n=1)
    tokens = vit_tokens(x, below(w, "trunk."), DEPTH, n_heads=12)
    assert_close(backbone.activations(x, [None], "all")["output"], tokens)
    # CoCa (Yu et al. 2022): one query attends to all tokens; CONCH's own projection is a matrix from the right.
    pool = below(w, "attn_pool_contrast.")
    k = norm(tokens, pool, "ln_k", 1e-5)
    q_bias, k_bias, v_bias = pool["attn.in_proj_bias"].chunk(3)
    q = norm(pool["query"], pool, "ln_q", 1e-5) @ pool["attn.q_proj_weight"].T + q_bias
    pooled = attend(q, k @ pool["attn.k_proj_weight"].T + k_bias, k @ pool["attn.v_proj_weight"].T + v_bias, 8)
    pooled = norm(linear(pooled, pool, "attn.out_proj"), w, "ln_contrast", 1e-5)
    assert_close(backbone.activations(x)["output"], pooled)
    assert_close(backbone.activations(x, [None], "projected")["output"], pooled @ w["proj_contrast"])
    assert_close(backbone.tail(0, backbone.activations(x, [0], "all")["0"]), pooled[:, 0] @ w["proj_contrast"])


@torch.no_grad()
def test_v1_at_224_pixels_interpolates_its_positions_as_clam_does(conch):
    path, w = conch
    backbone = ConchBackbone("b", checkpoint=str(path), image_size=224, model_args={"depth": DEPTH}, **CLIP)
    assert backbone.grid() == (14, 14)
    x = prepared(backbone, n=1)
    square = w["trunk.pos_embed"][:, 1:].reshape(1, 28, 28, 768).permute(0, 3, 1, 2)
    fitted = F.interpolate(square, (14, 14), mode="bicubic", antialias=True).flatten(2).mT
    positions = torch.cat([w["trunk.pos_embed"][:, :1], fitted], dim=1)
    expected = vit_tokens(x, below(w, "trunk."), DEPTH, 12, positions=positions)
    assert_close(backbone.activations(x, [None], "all")["output"], expected)


@pytest.mark.slow
@torch.no_grad()
def test_v1_5_has_no_biases_in_its_pooling_and_fits_positions_as_titan_does(tmp_path):
    w = random_weights(published_shapes("conch_v1_5", DEPTH))
    torch.save(w, tmp_path / "w.bin")
    backbone = ConchBackbone(
        "b",
        "conch_v1_5",
        str(tmp_path / "w.bin"),
        image_size=448,
        model_args={"depth": DEPTH},
        interpolation="bilinear",
    )
    x = prepared(backbone, n=1)
    square = w["trunk.pos_embed"][:, 1:].reshape(1, 14, 14, 1024).permute(0, 3, 1, 2)
    fitted = F.interpolate(square, scale_factor=(28.1 / 14, 28.1 / 14), mode="bicubic").flatten(2).mT
    positions = torch.cat([w["trunk.pos_embed"][:, :1], fitted], dim=1)
    tokens = vit_tokens(x, below(w, "trunk."), DEPTH, 16, positions=positions)
    pool = below(w, "attn_pool_contrast.")
    k, v = linear(norm(tokens, pool, "ln_k", 1e-5), pool, "to_kv").chunk(2, -1)
    pooled = attend(linear(norm(pool["query"], pool, "ln_q", 1e-5), pool, "to_q"), k, v, 8)
    assert_close(backbone.activations(x)["output"], norm(linear(pooled, pool, "to_out"), w, "ln_contrast", 1e-5))


def test_camelyon16_is_embedded_from_the_published_file(conch, tmp_path):
    path, _ = conch
    picture = np.random.default_rng(0).integers(0, 255, (96, 96, 3), dtype=np.uint8)
    (tmp_path / "slides").mkdir()
    write_slide(tmp_path / "slides" / "normal_001.tif", picture, 0.25)
    typed = [
        "exp=camelyon16_conch",
        f"dataset.dir={tmp_path}",
        "tile.patch_size=48",
        "tile.patch_level=0",
        "trainer=cpu",
    ]
    typed += [f"backbone.checkpoint={path}", f"+backbone.model_args.depth={DEPTH}", "backbone.image_size=224"]
    cfg = config.resolve(config.compose([*typed, "task=embed"]))
    assert cfg.dataset.features_dir == f"{tmp_path}/features_conch_224px_48_level0"
    coords = np.array([[0, 0], [48, 48]])
    (tmp_path / "patches_48_level0" / "patches").mkdir(parents=True)
    with h5py.File(tmp_path / "patches_48_level0" / "patches" / "normal_001.h5", "w") as file:
        file.create_dataset("coords", data=coords).attrs.update(
            {"patch_size": 48, "patch_level": 0, "downsample": (1.0, 1.0), "patch_size_level0": 48}
        )
    rundir = RunDir(tmp_path / "run")
    rundir.path.mkdir()
    assert embed.run(cfg, rundir) == {"n_items": 1, "n_rows": 2, "d_in": 512}
    backbone = config.instantiate(cfg.backbone)
    with open_slide_images(tmp_path / "slides" / "normal_001.tif") as images:
        patches = np.stack([images.patch(x, y, 48, 48) for x, y in coords])
    x = backbone.normalize(backbone.resize(torch.from_numpy(patches).permute(0, 3, 1, 2)))
    with h5py.File(f"{cfg.dataset.features_dir}/h5_files/normal_001.h5") as file:
        assert_close(torch.from_numpy(file["features"][()]), backbone.activations(x)["output"][:, 0])


def test_without_weights_features_of_others_are_read(tmp_path):
    (tmp_path / "clam" / "features_conch_v1" / "pt_files").mkdir(parents=True)
    (tmp_path / "clam" / "features_conch_v1" / "pt_files" / "a.pt").touch()
    typed = ["exp=camelyon16_conch", f"dataset.dir={tmp_path}"]
    assert config.resolve(config.compose(typed)).dataset.features_dir == f"{tmp_path}/clam/features_conch_v1"
    with pytest.raises(ValueError, match=r"backbone=conch: give .*backbone\.checkpoint"):
        embed.run(config.compose([*typed, "task=embed"]), None)
