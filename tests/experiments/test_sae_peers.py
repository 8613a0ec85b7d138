import pytest

from experiments.benchmarks.sae_peers import require


def test_a_missing_peer_is_named_with_the_command_that_brings_it():
    with pytest.raises(ImportError, match=r"the peer no_such_peer .*make bench-env"):
        require("no_such_peer.module")
