"""What was read, looked for again."""

import pytest

from src import config
from src.data.current_inputs import CurrentInputs

config.register_resolvers()


def test_a_kind_that_nobody_knows_is_named():
    cfg = config.compose(["exp=quickstart"])
    with pytest.raises(ValueError, match=r"Expected an input among .*'slides'.* got 'moon all': give overwrite=true"):
        CurrentInputs(cfg).read("moon all")
