"""Whether W&B would find an account, without W&B's own code: its login starts processes and asks a server."""

import configparser
import netrc
import os
from contextlib import suppress
from pathlib import Path
from urllib.parse import urlsplit

_KEYS = ("WANDB_API_KEY", "WANDB_IDENTITY_TOKEN_FILE")
_SERVER = "https://api.wandb.ai"


def has_wandb_account() -> bool:
    """Looks where wandb 0.31 looks: the environment, its settings files, and the netrc file's entry of the server."""
    settings = configparser.ConfigParser(interpolation=None)
    with suppress(configparser.Error):  # W&B takes nothing from a damaged file either
        settings.read([Path.home() / ".config" / "wandb" / "settings", "wandb/settings"])
    own = dict(settings["default"]) if settings.has_section("default") else {}
    if any(os.environ.get(key) for key in _KEYS) or own.get("api_key"):
        return True
    server = os.environ.get("WANDB_BASE_URL") or own.get("base_url") or _SERVER
    places = [os.environ["NETRC"]] if "NETRC" in os.environ else [Path.home() / ".netrc", Path.home() / "_netrc"]
    for place in places:
        try:
            if netrc.netrc(place).authenticators(urlsplit(server).netloc):
                return True
        except (OSError, netrc.NetrcParseError):
            continue
    return False
