"""Which files are images, which are a system's own, and what a name of a list means."""

from pathlib import Path

import pytest
from PIL import Image

from mtl_jax.data import files, images
from mtl_jax.errors import UserError


def test_every_suffix_of_a_format_that_is_decoded_is_an_image():
    registered = Image.registered_extensions()
    assert {suffix for suffix, kind in registered.items() if kind in images.FORMATS} == files.SUFFIXES


@pytest.mark.parametrize("name", ["a.jpg", "a.JPEG", "my photo.tiff", "a.b.png"])
def test_images(name):
    assert files.is_image(Path(name))


@pytest.mark.parametrize("name", ["._a.jpg", ".DS_Store", "Thumbs.db", "desktop.ini", "a.txt", "jpg", ".jpg", "Icon\r"])
def test_no_images(name):
    assert not files.is_image(Path(name))


def test_a_name_means_its_file_or_the_one_image_of_that_stem(tmp_path):
    for name in ("a.b.png", "sub/c.JPG", "d.jpg", "d.bmp", "d.txt", "._e.png", "f.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    index = files.ImageFolderIndex(tmp_path)
    result = [index.find(name).relative_to(tmp_path).as_posix() for name in ("a.b", "a.b.png", "sub/c", "d.bmp")]
    assert result == ["a.b.png", "a.b.png", "sub/c.JPG", "d.bmp"]
    for name, words in (("d", r"found d\.bmp, d\.jpg"), ("e", "found none"), ("f", "found none"), ("../a", "outside")):
        with pytest.raises(UserError, match=words):
            index.find(name)
