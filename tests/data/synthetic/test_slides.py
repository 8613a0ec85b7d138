import numpy as np
import pytest
from skimage.color import rgb2hed
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from src.data.slides.annotations import read_asap_xml
from src.data.slides.slide_files import find_slide, list_slides, open_slide
from src.data.slides.slide_writer import write_slide
from src.data.synthetic.drawing import STAINS, draw_slide
from src.data.synthetic.slides import generate_slides, plan_slides
from src.data.synthetic.tissue import TUMOR_SHARE, fill
from src.records import read_items

PATCH = 96


def cut(image):
    rows, columns = image.shape[0] // PATCH, image.shape[1] // PATCH
    grid = image[: rows * PATCH, : columns * PATCH].reshape(rows, PATCH, columns, PATCH, -1)
    return grid.transpose(0, 2, 1, 3, 4).reshape(rows * columns, PATCH, PATCH, -1)


def stained(pixels):
    return pixels.max(axis=-1).astype(int) - pixels.min(axis=-1) > 20


def test_the_same_seed_gives_the_same_pixels():
    image, outlines = draw_slide(5, True, 512)
    again, outlines_again = draw_slide(5, True, 512)
    other, _ = draw_slide(6, True, 512)
    np.testing.assert_array_equal(image, again)
    np.testing.assert_array_equal(np.concatenate(outlines), np.concatenate(outlines_again))
    assert image.dtype == np.uint8
    assert image.shape[2] == 3
    assert all(448 <= edge <= 576 for edge in image.shape[:2])
    assert other.shape != image.shape or (other != image).any()


def test_tumor_takes_its_share_in_compact_regions_and_normal_slides_have_none():
    for seed in range(4):
        image, outlines = draw_slide(seed, True, 1024)
        inside = fill(outlines, image.shape[:2], 1)
        tissue = stained(image)
        assert TUMOR_SHARE[0] < (inside & tissue).sum() / tissue.sum() < TUMOR_SHARE[1] * 1.05
        assert 1 <= len(outlines) <= 3
        assert (inside & tissue).sum() > 0.6 * inside.sum()
    assert draw_slide(0, False, 512)[1] == []


def test_small_slide_is_refused():
    with pytest.raises(ValueError, match="at least 256 pixels, got 100"):
        draw_slide(0, True, 100)


def test_generated_files_are_read_back(tmp_path):
    generate_slides(tmp_path, n_slides=3, n_cases=2, size=600, seed=3)
    slides = read_items(tmp_path / "dataset.csv", ["normal", "tumor"])
    assert [(slide.case_id, slide.label) for slide in slides] == [
        ("case_1", "normal"),
        ("case_1", "normal"),
        ("case_2", "tumor"),
    ]
    assert [path.stem for path in (tmp_path / "annotations").iterdir()] == ["case_2_1"]
    image, outlines = draw_slide(plan_slides(3, 2, 3)[2].seed, True, 600)
    polygons = read_asap_xml(tmp_path / "annotations" / "case_2_1.xml")
    np.testing.assert_allclose(np.concatenate([p.points for p in polygons]), np.concatenate(outlines), atol=0.01)
    with open_slide(tmp_path / "slides" / "case_2_1.tif") as slide:
        assert slide.dimensions == image.shape[1::-1]
        assert slide.level_count >= 2
        assert float(slide.properties["openslide.mpp-x"]) == pytest.approx(0.5)
        read = np.asarray(slide.read_region((0, 0), 0, slide.dimensions).convert("RGB")).astype(int)
    assert np.abs(read - image).mean() < 4  # JPEG


def test_second_call_draws_only_what_is_missing(tmp_path):
    generate_slides(tmp_path, n_slides=2, n_cases=2, size=256, seed=0)
    kept, gone = (tmp_path / "slides" / f"case_{i}_1.tif" for i in (1, 2))
    before, drawn = kept.stat().st_mtime_ns, gone.read_bytes()
    gone.unlink()
    generate_slides(tmp_path, n_slides=2, n_cases=2, size=256, seed=0)
    assert kept.stat().st_mtime_ns == before
    assert gone.read_bytes() == drawn


def test_what_a_killed_drawing_left_is_removed_and_listed_nowhere(tmp_path):
    generate_slides(tmp_path, n_slides=2, n_cases=2, size=256)
    leftovers = [tmp_path / "slides" / ".case_1_1.x1.partial.tif", tmp_path / "annotations" / ".a.x2.partial.xml"]
    for path in leftovers:
        path.write_bytes(b"half")
    assert list(list_slides(tmp_path / "slides")) == ["case_1_1", "case_2_1"]
    generate_slides(tmp_path, n_slides=2, n_cases=2, size=256)
    assert not any(path.exists() for path in leftovers)
    (tmp_path / "slides" / ".DS_Store").touch()
    with pytest.raises(FileNotFoundError, match=r"slide '\.case_1_1'"):
        find_slide(tmp_path / "slides", ".case_1_1")


def test_folder_with_nothing_but_a_leftover_is_empty(tmp_path):
    (tmp_path / "slides").mkdir()
    (tmp_path / "slides" / ".x.partial.tif").touch()
    generate_slides(tmp_path, n_slides=2, n_cases=2, size=256)
    assert len(list_slides(tmp_path / "slides")) == 2


def test_folder_of_other_settings_is_refused(tmp_path):
    generate_slides(tmp_path, n_slides=2, n_cases=2, size=256, seed=0)
    with pytest.raises(ValueError, match=r"'seed': 1.*got .*'seed': 0"):
        generate_slides(tmp_path, n_slides=2, n_cases=2, size=256, seed=1)
    (tmp_path / "generator.json").unlink()
    with pytest.raises(ValueError, match="got other slides"):
        generate_slides(tmp_path, n_slides=2, n_cases=2, size=256, seed=0)


def test_plan_gives_every_case_slides_and_one_label():
    planned = plan_slides(60, 40, 0)
    assert len({slide.slide_id for slide in planned}) == 60
    assert len({slide.case_id for slide in planned}) == 40
    assert sum(slide.positive for slide in planned) == 30
    assert len({(slide.case_id, slide.positive) for slide in planned}) == 40
    with pytest.raises(ValueError, match="n_cases 3 and n_slides 2"):
        plan_slides(2, 3, 0)


def test_levels_halve(tmp_path):
    image = np.full((520, 700, 3), 200, np.uint8)
    write_slide(tmp_path / "flat.tif", image, 0.25)
    with open_slide(tmp_path / "flat.tif") as slide:
        assert slide.level_dimensions == ((700, 520), (350, 260))
        assert float(slide.properties["openslide.mpp-y"]) == pytest.approx(0.25)


@pytest.mark.slow
def test_mean_color_does_not_tell_tumor_but_there_is_tumor_to_tell():
    """Mean RGB and HED of a patch, the latter of each pixel or of the mean colour, fitted on half of the slides."""
    planned = plan_slides(32, 16, 0)
    colors, labels, slides = [], [], []
    for index, slide in enumerate(planned):
        image, outlines = draw_slide(slide.seed, slide.positive, 1536)
        patches = cut(image)
        covered = cut(fill(outlines, image.shape[:2], 1)[..., None]).mean(axis=(1, 2, 3))
        kept = stained(patches).mean(axis=(1, 2)) > 0.5
        rgb = patches[kept].mean(axis=(1, 2))
        # Every ninth pixel: a thousand of a patch.
        hed = np.array([rgb2hed(patch).mean(axis=(0, 1)) for patch in patches[kept][:, ::3, ::3]])
        colors.append(np.hstack([rgb, hed, rgb2hed(rgb[:, None] / 255)[:, 0]]))
        labels.append(covered[kept] > 0.5)
        slides.append(np.full(kept.sum(), index))
    colors, labels, slides = np.concatenate(colors), np.concatenate(labels), np.concatenate(slides)
    assert labels.sum() > 100
    held_out = slides // 4 % 2 == 1  # two cases of two slides each, one of them with tumour
    for fitted, scored in ((~held_out, held_out), (held_out, ~held_out)):
        for columns in (slice(0, 3), slice(3, 6), slice(0, 6), [0, 1, 2, 6, 7, 8]):
            model = make_pipeline(StandardScaler(), LogisticRegression(max_iter=2000, class_weight="balanced"))
            model.fit(colors[fitted][:, columns], labels[fitted])
            scores = model.decision_function(colors[scored][:, columns])
            auroc = roc_auc_score(labels[scored], scores)
            assert auroc < 0.75


def test_two_centres_differ_in_stain_and_in_how_many_cases_have_tumour():
    planned = plan_slides(40, 40, 0, center_skew=0.8)
    share = {
        positive: np.mean([slide.center for slide in planned if slide.positive == positive])
        for positive in (True, False)
    }
    assert share == {True: pytest.approx(0.8), False: pytest.approx(0.2)}
    assert [slide.seed for slide in planned] == [slide.seed for slide in plan_slides(40, 40, 0)]
    first, second = (draw_slide(7, True, 256, stain) for stain in STAINS)
    np.testing.assert_array_equal(first[1][0], second[1][0])
    colours = [image.reshape(-1, 3)[image.min(axis=2).ravel() < 200].mean(axis=0) for image, _ in (first, second)]
    assert np.abs(colours[0] - colours[1]).max() > 10


def test_the_csv_names_centres_only_where_there_are_two(tmp_path):
    generate_slides(tmp_path / "two", n_slides=2, n_cases=2, size=256, center_skew=1.0)
    rows = (tmp_path / "two/dataset.csv").read_text().splitlines()
    assert rows == [
        "case_id,slide_id,label,center",
        "case_1,case_1_1,normal,center_1",
        "case_2,case_2_1,tumor,center_2",
    ]
    with pytest.raises(ValueError, match="drawn with"):
        generate_slides(tmp_path / "two", n_slides=2, n_cases=2, size=256)
