"""Weights that others published: in a cache here, or within reach, or an error within seconds.

The libraries retry an unreachable host for most of a minute, or fall back to random weights. Here
the cache is looked at first, and the network is asked once, shortly, before a library is let go.
"""

from __future__ import annotations

import http.client
import os
import threading
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Sequence
from pathlib import Path

import torch

from limbeck.core.errors import ModelError

__all__ = ["check_reachable", "hub_offline", "hub_snapshot_file", "torch_hub_file"]

_SECONDS = 3.0  # to wait for an answer; an answer of any kind will do


def hub_snapshot_file(repository: str, names: Sequence[str]) -> Path | None:
    """The first of some files of a repository of the Hugging Face Hub that lies in the cache.

    Args:
        repository: ``owner/name`` or ``owner/name@revision``.
        names: of files in it, best first.
    """
    from huggingface_hub import try_to_load_from_cache

    owner_and_name, _, revision = repository.partition("@")
    for name in names:
        found = try_to_load_from_cache(owner_and_name, name, revision=revision or None)
        if isinstance(found, str):  # else unknown here, or known to be absent there
            return Path(found)
    return None


def torch_hub_file(address: str) -> Path | None:
    """The file of a web address that torch's own hub has downloaded before."""
    name = Path(urllib.parse.urlparse(address).path).name
    path = Path(torch.hub.get_dir()) / "checkpoints" / name
    return path if path.is_file() else None


def hub_offline() -> bool:
    """Whether the user forbids the Hugging Face Hub (``HF_HUB_OFFLINE``)."""
    # The environment and not the library's constant, which was read when it was imported.
    return os.environ.get("HF_HUB_OFFLINE", "").upper() in {"1", "ON", "YES", "TRUE"}


def check_reachable(address: str, *, wanted: str, remedy: str, forbidden: bool = False) -> None:
    """Ask a host once for anything at all.

    Args:
        address: a web address; proxies of the environment are used.
        wanted: what is missing here, for the message.
        remedy: what to do without a network, for the message.
        forbidden: whether the user said to stay offline: then nothing is asked.

    Raises:
        ModelError: within four seconds, if there is no answer.
    """
    reason = "HF_HUB_OFFLINE is set" if forbidden else _unreachable(address)
    if reason is not None:
        host = urllib.parse.urlparse(address).netloc
        raise ModelError(
            f"the cache of this machine lacks {wanted}, and {host} cannot be asked ({reason}). "
            f"{remedy}"
        )


def _unreachable(address: str) -> str | None:
    """Why a host cannot be reached; None if it answers."""
    found: list[str | None] = []

    def ask() -> None:
        try:
            request = urllib.request.Request(address, method="HEAD")
            with urllib.request.urlopen(request, timeout=_SECONDS):
                found.append(None)
        except urllib.error.HTTPError:
            found.append(None)  # an answer, if not the one we wanted
        except (OSError, ValueError, http.client.HTTPException) as error:
            found.append(str(getattr(error, "reason", error)))

    # In a thread of its own: looking up a name knows no timeout.
    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(_SECONDS + 0.5)
    return found[0] if found else f"no answer in {_SECONDS:.0f} s"
