"""Files of torch.save: tensors to the bit, whatever their kind and view, and nothing of a pickle is ever run."""

import collections
import functools
import os
import pickle
import time
import zipfile
from pathlib import Path

import numpy as np
import pytest
from torch_files import STORAGES, Tensor, described, save, save_legacy

from mtl_jax.errors import UserError
from mtl_jax.models.backbones import tensor_pickle, torch_file
from mtl_jax.models.backbones.pretrained import read_state_dict

RNG = np.random.default_rng(0)
ARRAYS = {
    f"of {kind}": (RNG.normal(size=(3, 2, 4)) * 50).astype(kind) for kind in STORAGES
} | {"number": np.array(7, np.int64), "empty": np.zeros((0, 3), np.float32)}  # fmt: skip


@pytest.mark.parametrize(
    "write",
    [save, save_legacy, functools.partial(save, protocol=4), functools.partial(save, order="big")],
    ids=["zip", "legacy", "protocol_4", "big_endian"],
)
def test_tensors_arrive_to_the_bit(write, tmp_path):
    path = write(tmp_path / "w.pth", collections.OrderedDict((name, Tensor(entry)) for name, entry in ARRAYS.items()))
    result = torch_file.read(path)
    assert list(result) == list(ARRAYS)
    for name, array in ARRAYS.items():
        assert (result[name].dtype, result[name].shape) == (array.dtype, array.shape)
        assert result[name].tobytes() == array.tobytes()


def test_views_look_at_the_numbers_as_the_tensors_did(tmp_path):
    numbers = np.arange(12, dtype=np.float32)
    views = {
        "turned": Tensor(numbers, shape=(4, 3), strides=(1, 4)),
        "end": Tensor(numbers, offset=8, shape=(4,), strides=(1,)),
        "spread": Tensor(numbers[:1], shape=(2, 5), strides=(0, 0)),
    }
    result = torch_file.read(save(tmp_path / "w.pth", views))
    np.testing.assert_array_equal(result["turned"], numbers.reshape(3, 4).T)
    np.testing.assert_array_equal(result["end"], numbers[8:])
    np.testing.assert_array_equal(result["spread"], np.zeros((2, 5)))


def test_versions_of_layers_beside_the_tensors_are_passed_over(tmp_path):
    table = collections.OrderedDict(a=Tensor(np.ones(2, np.float32)))
    table._metadata = collections.OrderedDict({"": {"version": 1}})
    assert list(torch_file.read(save(tmp_path / "w.pth", table))) == ["a"]


class Call:
    """Runs a function of one's own choice when its pickle is."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


def looped():
    full = {}
    full["a"] = full
    return full


ONE = np.ones(1, np.float32)
HOSTILE = {
    "system": {"a": Call(os.system, "touch made")},
    "eval": {"a": Call(eval, "open('made', 'w')")},
    "getattr": {"a": Call(getattr, Path, "touch")},
    "looped": looped(),
    "number": 7,
    "list": [Tensor(ONE)],
    "words": {"a": "b"},
    "below": {"a": {"b": Tensor(ONE)}},
    "past": {"a": Tensor(ONE, offset=1)},
    "before": {"a": Tensor(ONE, offset=-1)},
    "claims": {"a": Tensor(ONE, shape=(1 << 20, 1 << 20), strides=(1 << 20, 1))},
    "backwards": {"a": Tensor(ONE, shape=(2,), strides=(-1,))},
    "endless": {"a": Tensor(ONE, shape=(1 << 80,), strides=(1,))},
    "axes": {"a": Tensor(ONE, shape=(1,) * 70, strides=(1,) * 70)},
    "lopsided": {"a": Tensor(ONE, shape=(1, 1), strides=(1,))},
    "half": {"a": Tensor(ONE, shape=(0.5,), strides=(1,))},
    "filled": collections.OrderedDict([("a", collections.OrderedDict(b=1))]),
}


@pytest.mark.parametrize("name", HOSTILE)
@pytest.mark.parametrize("write", [save, save_legacy])
def test_what_describes_no_tensors_is_refused_in_a_line(name, write, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    tree = HOSTILE[name]
    full = tree if isinstance(tree, dict) else {}
    write(tmp_path / "w.pth", full)
    if full is not tree:  # no table, which `write` would number
        with zipfile.ZipFile(tmp_path / "w.pth", "w") as archive:
            archive.writestr("weights/data.pkl", described(tree))
    started = time.monotonic()
    with pytest.raises(UserError, match=r"w\.pth: expected a PyTorch state_dict") as error:
        read_state_dict(tmp_path / "w.pth")
    assert "\n" not in str(error.value)
    assert time.monotonic() - started < 2
    assert not (tmp_path / "made").exists()


@pytest.mark.parametrize(
    "steps",
    [
        b"",
        b".",
        b"}u.",
        b"(",
        b"h\x07.",
        b"0.",
        b"]}s.",
        b"\x85.",
        b"}(K\x01u.",
        b"cos\nsystem\n(X\x01\x00\x00\x00aR.",
        b"cos\nsystem\nX\x01\x00\x00\x00a\x85R.",
        b"X\x01\x00\x00\x00aQ.",
        b"ccollections\nOrderedDict\nK\x01\x85R.",
        b"ctorch._utils\n_rebuild_parameter\n)R.",
        b"ios\nsystem\n.",
        b"\x80\x05\x97.",
        b"\xff",
        # Each tuple holds the one before twice: a table would never be done with hashing the last.
        b"})" + b"q\x00h\x00\x86" * 60 + b"K\x01s.",
        b"}K\x01" + b"]" * 5_000 + b"a" * 4_999 + b"s.",
    ],
    ids=range(19),
)
def test_broken_descriptions_are_refused(steps, tmp_path):
    with zipfile.ZipFile(tmp_path / "w.pth", "w") as archive:
        archive.writestr("w/data.pkl", steps)
    with pytest.raises(UserError, match=r"w\.pth") as error:
        read_state_dict(tmp_path / "w.pth")
    assert "\n" not in str(error.value)


def test_a_storage_that_is_missing_or_short_is_refused(tmp_path):
    for content in ({}, {"w/data/0": b"123"}):
        with zipfile.ZipFile(tmp_path / "w.pth", "w") as archive:
            archive.writestr("w/data.pkl", described({"a": _keyed(Tensor(ONE))}))
            for name, value in content.items():
                archive.writestr(name, value)
        with pytest.raises(UserError, match=r"w\.pth: .*(no numbers '0'|3 bytes where 1 numbers of 4 bytes belong)"):
            read_state_dict(tmp_path / "w.pth")


def test_numbers_of_a_kind_that_numpy_lacks_are_refused_by_name(tmp_path):
    pickled = described({"a": _keyed(Tensor(ONE))}).replace(b"FloatStorage", b"BFloat16Storage")
    with zipfile.ZipFile(tmp_path / "w.pth", "w") as archive:
        archive.writestr("w/data.pkl", pickled)
    with pytest.raises(UserError, match="BFloat16Storage, and none of DoubleStorage, FloatStorage"):
        read_state_dict(tmp_path / "w.pth")


@pytest.mark.parametrize(
    ("module", "name", "value"), [(tensor_pickle, "MAX_STEPS", 4), (torch_file, "MAX_PICKLE_BYTES", 20)]
)
def test_a_long_description_is_refused(module, name, value, tmp_path, monkeypatch):
    monkeypatch.setattr(module, name, value)
    with pytest.raises(UserError, match=f"a description of more than {value}"):
        read_state_dict(save(tmp_path / "w.pth", {"a": Tensor(ONE)}))


def test_a_plain_pickle_is_no_such_file(tmp_path):
    (tmp_path / "w.pth").write_bytes(pickle.dumps({"a": 1}))
    with pytest.raises(UserError, match=r"w\.pth"):
        read_state_dict(tmp_path / "w.pth")


def _keyed(tensor):
    tensor.key = "0"
    return tensor
