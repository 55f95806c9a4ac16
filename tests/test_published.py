"""Published weights: fetched once from a server on localhost, checked, kept; found by path as before."""

import hashlib
import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from local_server import LocalServer, serve
from torch_files import Tensor, save

from mtl_jax.errors import UserError
from mtl_jax.models.backbones import pretrained, published
from mtl_jax.models.backbones.pretrained import read_state_dict
from mtl_jax.models.backbones.published import PUBLISHED, Published

NAME = "mobilenet_v3_small"


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[LocalServer]:
    """Serves a file in the place of the published one."""
    monkeypatch.setenv("no_proxy", "*")
    monkeypatch.setenv("MTL_JAX_CACHE", str(tmp_path / "cache"))
    content = save(tmp_path / "served.pth", {"a": Tensor(np.arange(3.0))}).read_bytes()
    digest = hashlib.sha256(content).hexdigest()
    monkeypatch.setattr(published, "PUBLISHED", {NAME: Published("small.pth", digest[:8])})
    with serve() as state:
        state.files["small.pth"] = content
        monkeypatch.setenv("MTL_JAX_WEIGHTS_URL", f"{state.url}/")
        yield state


def find(tmp_path: Path, path: str = NAME, **options) -> Path:
    return published.find(path, **({"backbone": NAME, "data_root": tmp_path / "data"} | options))


def test_a_published_file_is_downloaded_once_and_kept(server: LocalServer, tmp_path: Path) -> None:
    for _ in range(2):
        file = find(tmp_path)
    assert file == tmp_path / "cache" / "weights" / "small.pth"
    assert [path for path, _ in server.requests] == ["/small.pth"]
    np.testing.assert_array_equal(read_state_dict(file)["a"], np.arange(3.0))
    assert find(tmp_path, offline=True) == file


def test_a_kept_file_that_has_changed_is_fetched_again(server: LocalServer, tmp_path: Path) -> None:
    file = find(tmp_path)
    content = file.read_bytes()
    file.write_bytes(content[:-1])
    assert find(tmp_path).read_bytes() == content
    assert len(server.requests) == 2


def test_another_content_than_published_is_refused(server: LocalServer, tmp_path: Path) -> None:
    server.files["small.pth"] = b"another"
    with pytest.raises(UserError, match=r"small\.pth: expected SHA-256 .* put it at .*/weights/small\.pth") as error:
        find(tmp_path)
    assert "--from_dir" not in str(error.value)
    assert not list((tmp_path / "cache" / "weights").glob("*.pth"))


def test_offline_downloads_nothing_and_says_what_to_do(server: LocalServer, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"expected the weights of mobilenet_v3_small at .* --config\.offline=False"):
        find(tmp_path, offline=True)
    assert server.requests == []


def test_a_folder_that_cannot_be_written_is_told(server: LocalServer, tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("a file")
    with pytest.raises(UserError, match="cache"):
        find(tmp_path)


def test_the_weights_of_another_backbone_are_refused_before_any_download(server: LocalServer, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"expected weights of the backbone 'plain_cnn' .*, found 'mobilenet"):
        find(tmp_path, backbone="plain_cnn")
    assert server.requests == []


def test_a_missing_file_names_the_weights_that_come_by_themselves(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"gone\.npz not found in .*take --config\.pretrained=mobilenet_v3_small"):
        find(tmp_path, "gone.npz")
    with pytest.raises(UserError, match=r"gone\.npz not found in [^;]*; put torchvision's"):
        find(tmp_path, "gone.npz", backbone="plain_cnn")


@pytest.mark.parametrize("folder", ["data", "data/weights", "weights"])
def test_a_path_is_looked_for_in_the_data_folder_and_beside_it(folder: str, tmp_path: Path) -> None:
    (tmp_path / folder).mkdir(parents=True)
    (tmp_path / folder / "w.npz").touch()
    assert find(tmp_path, "w.npz", offline=True) == tmp_path / folder / "w.npz"


def test_every_backbone_with_torchvisions_names_has_a_published_file() -> None:
    assert PUBLISHED.keys() == pretrained.ARCHITECTURES.keys()
    for name, entry in PUBLISHED.items():
        assert re.fullmatch(rf"{name}[a-z_]*-{entry.sha256}\.pth", entry.file)
        assert re.fullmatch("[0-9a-f]{8}", entry.sha256)
