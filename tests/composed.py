"""Composes a configuration when it is imported: commands forked after that find Hydra's parsers warm."""

from src import config

config.register_resolvers()
config.resolve(config.compose(["exp=quickstart_small"]))
