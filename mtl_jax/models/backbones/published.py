"""Weights of backbones that torchvision publishes: fetched once, checked, and kept in the user's cache."""

from __future__ import annotations

import fcntl
import logging
import os
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

from mtl_jax.data.minis.download import disk_errors, download, file_sha256
from mtl_jax.errors import UserError
from mtl_jax.kernels import user_cache

BASE_URL = "https://download.pytorch.org/models"  # $MTL_JAX_WEIGHTS_URL names a mirror of it


class Published(NamedTuple):
    """A file on the server."""

    file: str
    sha256: str  # its beginning, which torchvision writes into the file's name


# By the backbone's name: IMAGENET1K_V1 of each, whose recipe the first papers had.
PUBLISHED: Mapping[str, Published] = MappingProxyType(
    {
        "mobilenet_v3_small": Published("mobilenet_v3_small-047dcff4.pth", "047dcff4"),
        "mobilenet_v3_large": Published("mobilenet_v3_large-8738ca79.pth", "8738ca79"),
        "efficientnet_b0": Published("efficientnet_b0_rwightman-7f5810bc.pth", "7f5810bc"),
    }
)

log = logging.getLogger(__name__)


def find(path: str, *, backbone: str, data_root: Path, offline: bool = False) -> Path:
    """Returns where a file of pretrained features lies; a published one is downloaded once.

    Args:
        path: a file, whose relative path is also looked for in data_root, data_root/weights and data_root/../weights;
            or a key of `PUBLISHED`.
        backbone: that it is for.
        data_root: folder of the datasets.
        offline: download nothing.

    Raises:
        UserError: it is in none of the places, which are named; or it is published for another backbone.
    """
    if path in PUBLISHED and path != backbone:
        raise UserError(
            f"config.pretrained: expected weights of the backbone {backbone!r} (config.model.backbone), found "
            f"{path!r}; set both to the same, or config.pretrained to a file"
        )
    if path in PUBLISHED:
        return fetch(path, offline=offline)
    folders = (data_root, data_root / "weights", data_root.parent / "weights")
    places = [Path(path).expanduser(), *(folder / path for folder in folders)]
    for place in places:
        if place.is_file():
            return place
    searched = dict.fromkeys(os.path.normpath(place.absolute()) for place in places)
    download = f"take --config.pretrained={backbone}, which downloads them; " if backbone in PUBLISHED else ""
    raise UserError(
        f"pretrained features {path} not found in {', '.join(searched)}; {download}put torchvision's weights of the "
        "backbone (.pth or .npz) there, or start from random weights with --config.pretrained="
    )


def fetch(name: str, *, offline: bool = False) -> Path:
    """Returns the file of a backbone's published weights, downloaded where the cache does not have it.

    Args:
        name: a key of `PUBLISHED`.
        offline: download nothing.

    Raises:
        UserError: it is not in the cache, and may not or cannot be downloaded.
    """
    published = PUBLISHED[name]
    url = f"{os.environ.get('MTL_JAX_WEIGHTS_URL', BASE_URL).rstrip('/')}/{published.file}"
    path = user_cache.cache_dir() / "weights" / published.file
    with disk_errors(path):
        if path.is_file() and file_sha256(path).startswith(published.sha256):
            return path
        other_means = f"or fetch the file by other means and put it at {path}"
        if offline:
            raise UserError(
                f"expected the weights of {name} at {path}, found none; allow the download with "
                f"--config.offline=False, or fetch {url} by other means and put it there"
            )
        log.warning("%s: downloading %s to %s", name, url, path)
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.with_name(f"{path.name}.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)  # runs that start together would write into one part
            return download(url, path, sha256=published.sha256, other_means=other_means)
