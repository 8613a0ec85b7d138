"""The figures that READMEs of experiments quote are those of the tables beside them."""

import itertools
import re
from pathlib import Path

import pandas as pd
import pytest

from experiments.quickstart import figures as quickstart

EXPERIMENTS = Path("experiments")
N_TOKENS = 14 * 14


def text_of(folder: str) -> str:
    """The README with single blanks, however its lines are broken."""
    return re.sub(r"\s+", " ", (EXPERIMENTS / folder / "README.md").read_text())


@pytest.fixture(scope="module")
def frontier():
    return pd.read_csv(EXPERIMENTS / "sae_families/frontier.csv").set_index(["data", "family", "sparsity", "seed"])


def test_quickstart_quotes_its_tables():
    readme = (EXPERIMENTS / "quickstart/README.md").read_text()
    written = readme.partition(quickstart.BEGIN)[2].partition(quickstart.END)[0]
    assert written == quickstart.quoted(*quickstart.read())


def test_quickstart_says_of_its_data_what_the_run_found():
    figures, scores = quickstart.read()
    readme = text_of("quickstart")
    assert f"{figures['n_items']:.0f} H&E-like slides of {figures['n_cases']:.0f} cases" in readme
    assert f"{figures['n_rows']:,.0f} patches of 96 px" in readme
    assert f"{figures['d_in']:.0f} activations" in readme
    assert figures["n_permutations_with_findings"] <= 0.05 * figures["n_permutations"]
    assert scores.loc["neuron", "auroc"] >= 0.90


def test_sae_families_quote_rows_and_steps_of_the_runs():
    figures, _ = quickstart.read()
    readme = text_of("sae_families")
    assert f"{figures['d_in']:.0f} dimensions, {figures['n_train_rows']:,.0f} train rows of" in readme
    assert f"Quickstart, 40 epochs ({figures['n_steps']:.0f} steps), {figures['n_latents']:,.0f} latents" in readme
    (images,) = re.findall(r"train rows of (\d+) images", readme)
    n_rows = int(images) * N_TOKENS
    assert f"{n_rows:,} train rows of {images} images" in readme
    script = (EXPERIMENTS / "sae_families/run.sh").read_text()
    epochs, batch_size = (int(re.findall(rf"train\.{key}=(\d+)", script)[0]) for key in ("epochs", "batch_size"))
    steps = epochs * -(-n_rows // batch_size)
    assert f"MobileNetV2 tokens, {epochs} epochs ({steps} steps)" in readme


def test_sae_families_quote_the_frontier(frontier):
    def ev(data, family, sparsity):
        return f"{frontier.loc[data, family, sparsity, 0]['explained_variance']:.3f}"

    def l0(data, family, sparsity):
        return f"{frontier.loc[data, family, sparsity, 0]['l0']:.0f}"

    slides, tokens = "quickstart", "bccd_mobilenetv2"
    jumprelu = [frontier.loc[slides, "JumpReLU", target, 0]["l0"] / target for target in (8, 16, 32)]
    low, high = (100 * share for share in (min(jumprelu), max(jumprelu)))
    tracked = [l0(tokens, "JumpReLU", target) for target in (8, 16, 32)]
    dead = 100 * frontier.loc[slides, "Archetypal", 32, 0]["dead_fraction"]
    behind = frontier.loc[slides, "BatchTopK", 16, 0] - frontier.loc[slides, "Archetypal", 16, 0]
    readme = text_of("sae_families")
    for quote in (
        f"at L0 16 TopK {ev(slides, 'TopK', 16)}, Matryoshka {ev(slides, 'MatryoshkaBatchTopK', 16)}, BatchTopK "
        f"{ev(slides, 'BatchTopK', 16)}, archetypal {ev(slides, 'Archetypal', 16)}",
        f"JumpReLU {ev(slides, 'JumpReLU', 32)} at L0 {l0(slides, 'JumpReLU', 32)}",
        f"gated {ev(slides, 'Gated', 0.03)} at {l0(slides, 'Gated', 0.03)}",
        f"p-annealing {ev(slides, 'PAnneal', 0.01)} at {l0(slides, 'PAnneal', 0.01)}",
        f"ReLU with L1 {ev(slides, 'ReLUL1', 0.01)} at {l0(slides, 'ReLUL1', 0.01)}",
        f"JumpReLU ends at {low:.0f} to {high:.0f} % of its target",
        f"BatchTopK {ev(tokens, 'BatchTopK', 16)} and Matryoshka {ev(tokens, 'MatryoshkaBatchTopK', 16)} at L0 "
        f"{l0(tokens, 'MatryoshkaBatchTopK', 16)} to {l0(tokens, 'BatchTopK', 16)}",
        f"JumpReLU {ev(tokens, 'JumpReLU', 8)} at {l0(tokens, 'JumpReLU', 8)}",
        f"TopK {ev(tokens, 'TopK', 16)} at {l0(tokens, 'TopK', 16)}",
        f"archetypal {ev(tokens, 'Archetypal', 16)} at {l0(tokens, 'Archetypal', 16)} and "
        f"{ev(tokens, 'Archetypal', 32)} at {l0(tokens, 'Archetypal', 32)}",
        f"p-annealing {ev(tokens, 'PAnneal', 0.003)} at {l0(tokens, 'PAnneal', 0.003)}",
        f"ReLU {ev(tokens, 'ReLUL1', 0.003)} at {l0(tokens, 'ReLUL1', 0.003)}",
        f"gated {ev(tokens, 'Gated', 0.01)} at {l0(tokens, 'Gated', 0.01)}",
        f"{behind['explained_variance']:.2f} below BatchTopK on the quickstart",
        f"on the quickstart at k 32 nothing: {dead:.0f} % of its neurons are dead",
        f"{tracked[0]}, {tracked[1]} and {tracked[2]} for targets 8, 16 and 32",
    ):
        assert quote in readme


def test_sae_families_quote_the_stability(frontier):
    stability = pd.read_csv(EXPERIMENTS / "sae_families/stability.csv").set_index("family")
    batch_topk, archetypal = (stability.loc[family] for family in ("BatchTopK", "Archetypal"))
    quote = (
        f"Five seeds on the quickstart at k 16: BatchTopK {batch_topk['explained_variance_mean']:.4f} ± "
        f"{batch_topk['explained_variance_sd']:.4f}, archetypal {archetypal['explained_variance_mean']:.3f} ± "
        f"{archetypal['explained_variance_sd']:.3f}. The atoms of two seeds agree with a mean largest cosine of "
        f"{archetypal['mean_max_cosine']:.2f} (archetypal) and {batch_topk['mean_max_cosine']:.2f} (BatchTopK)"
    )
    assert quote in text_of("sae_families")
    # Both tables are of the same runs.
    for family, row in stability.iterrows():
        seeds = frontier.xs(("quickstart", family, row["sparsity"]))
        assert len(seeds) == row["n_seeds"] == 5
        assert seeds["explained_variance"].mean() == pytest.approx(row["explained_variance_mean"], abs=1e-4)


def test_sae_families_say_what_the_quickstart_reaches_now():
    figures, _ = quickstart.read()
    assert f"BatchTopK at k 16 explains {figures['test/explained_variance']:.3f} there" in text_of("sae_families")


def test_no_number_of_the_measured_section_is_left_unchecked():
    """Guards the lists above: every decimal of the section stands in a table, rounded as it is quoted."""
    section = text_of("sae_families").partition("**Measured**")[2]
    tables = [pd.read_csv(EXPERIMENTS / f"sae_families/{name}.csv") for name in ("frontier", "stability")]
    values = list(itertools.chain.from_iterable(table.select_dtypes("number").to_numpy().ravel() for table in tables))
    for number in re.findall(r"(?<![\d.])0\.\d{3,4}(?!\d)", section):
        digits = len(number) - 2
        assert any(f"{value:.{digits}f}" == number for value in values), number
