"""Networks of timm, whose weights come from the Hugging Face hub."""

import ssl
import urllib.error
import urllib.request
from typing import Any

from torch import nn

WAIT = 5
"""Seconds to wait for the hub's answer."""


def from_timm(name: str, pretrained: bool, **options: Any) -> nn.Module:
    """Create a network of timm. If the hub does not answer, take the weights in the cache at once, or fail at once.

    The hub's own client tries for 47 s.

    Raises:
        ConnectionError: The hub does not answer, and the weights are not in the cache.
    """
    import timm
    from huggingface_hub import constants

    before = constants.HF_HUB_OFFLINE
    unreachable = "" if before or not pretrained else _unreachable(constants.ENDPOINT)
    constants.HF_HUB_OFFLINE = before or bool(unreachable)
    try:
        return timm.create_model(name, pretrained=pretrained, **options)
    except OSError as error:
        if not unreachable:
            raise
        raise ConnectionError(f"{constants.ENDPOINT} does not answer ({unreachable})") from error
    finally:
        constants.HF_HUB_OFFLINE = before


def _unreachable(address: str) -> str:
    """Return why there is no connection to an address, or an empty text if there is one."""
    try:
        urllib.request.urlopen(urllib.request.Request(address, method="HEAD"), timeout=WAIT).close()
    except urllib.error.HTTPError:  # an answer
        return ""
    except urllib.error.URLError as error:  # certificates are for the hub's client to judge
        return "" if isinstance(error.reason, ssl.SSLError) else str(error.reason)
    except OSError as error:
        return str(error)
    return ""
