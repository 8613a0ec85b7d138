import pytest

from src.analysis.methods import parse_methods, read_methods, write_methods

POOLS = ["max", "attention", "trans_mil"]


def test_names_become_methods_that_a_file_gives_back(tmp_path):
    names = ["trans_mil_latents", "max_top_neurons", "attention_activations", "neuron"]
    methods = parse_methods(names, POOLS)
    assert list(methods) == names
    assert [one.label for one in methods.values()] == [
        *("Trans mil MIL on latents", "Max MIL on top neurons", "Attention MIL on activations", "Best neuron")
    ]
    assert [(one.pool, one.eats) for one in methods.values()][:2] == [("trans_mil", "latents"), ("max", "top_neurons")]
    write_methods(methods, tmp_path / "methods.csv")
    assert list(read_methods(tmp_path / "methods.csv").items()) == list(methods.items())


def test_a_colour_stands_for_what_is_eaten_and_a_dash_for_the_pool():
    names = [f"{pool}_{eats}" for pool in POOLS for eats in ("activations", "latents")]
    methods = parse_methods(names, POOLS).values()
    assert len({one.color for one in methods}) == 2
    assert len({(one.color, one.dash) for one in methods}) == 6


def test_an_unknown_name_is_refused():
    with pytest.raises(ValueError, match=r"a pool among \['max', 'attention', 'trans_mil'\] .* got 'mean_latents'"):
        parse_methods(["neuron", "mean_latents"], POOLS)
