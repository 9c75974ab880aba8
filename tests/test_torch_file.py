"""Files of torch.save that would run something: nothing runs, and each is refused in one line."""

from __future__ import annotations

import io
import os
import pickle
import struct
import zipfile
from pathlib import Path

import numpy as np
import pytest

from clue_jax.convert.weights import read_weights
from clue_jax.errors import UserError

MAGIC = pickle.dumps(0x1950A86A20F9469CFC6C, 2)
PROTOCOL = pickle.dumps(1001, 2)
SYSTEM = pickle.dumps({"little_endian": True}, 2)


def as_zip(program: bytes) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as file:
        file.writestr("archive/data.pkl", program)
        file.writestr("archive/byteorder", "little")
        file.writestr("archive/data/0", np.arange(6, dtype=np.float32).tobytes())
    return buffer.getvalue()


def as_older(program: bytes) -> bytes:
    numbers = np.arange(6, dtype=np.float32).tobytes()
    head = MAGIC + PROTOCOL + SYSTEM + program + pickle.dumps(["0"], 2)
    return head + struct.pack("<q", 6) + numbers


LAYOUTS = {"zip": as_zip, "older": as_older}


def call(module: str, name: str, *arguments: str) -> bytes:
    """module.name(*arguments), by the plainest operations there are."""
    packed = b"".join(b"X" + struct.pack("<I", len(a.encode())) + a.encode() for a in arguments)
    return b"\x80\x02c%s\n%s\n(%stR." % (module.encode(), name.encode(), packed)


class Reduce:
    def __init__(self, function, *arguments):
        self.parts = function, arguments

    def __reduce__(self):
        return self.parts


def evil_programs(mark: Path) -> dict[str, bytes]:
    """Programs that make the file `mark` in an ordinary unpickler."""
    touch = f"open({str(mark)!r}, 'w').close()"
    shell = f"touch {mark}"
    programs = {f"protocol {p}": pickle.dumps(Reduce(os.system, shell), p) for p in range(6)}
    programs |= {
        "os.system": call("os", "system", shell),
        "posix.system": call("posix", "system", shell),
        "subprocess": call("subprocess", "getoutput", shell),
        "eval": call("builtins", "eval", touch),
        "exec": call("builtins", "exec", touch),
        "in a dict": pickle.dumps({"weight": Reduce(exec, touch)}, 2),
        "in a list": pickle.dumps([Reduce(exec, touch)], 2),
        "as a key": pickle.dumps({Reduce(exec, touch): 1}, 2),
        "old INST": b"(S'%s'\nios\nsystem\n." % shell.encode(),
        "old OBJ": b"(cos\nsystem\nS'%s'\no." % shell.encode(),
        "NEWOBJ": b"\x80\x02cos\nsystem\n(S'%s'\nt\x81." % shell.encode(),
        "STACK_GLOBAL": b"\x80\x04\x8c\x02os\x8c\x06system\x93\x8c%c%s\x85R."
        % (len(shell), shell.encode()),
        "then STOP": call("os", "system", shell)[:-1] + b"0}.",
        "via getattr": b"\x80\x02cbuiltins\ngetattr\n(cos\n__dict__\nX\x03\0\0\0gettR.",
        "attribute of a stand-in": b"\x80\x02ctorch._utils\n_rebuild_tensor_v2.__call__\n.",
        "torch.load": call("torch", "load", str(mark)),
        "torch's own unsafe": call("torch._utils", "_import_dotted_name", "os.system"),
    }
    return programs


NAMES = sorted(evil_programs(Path("x")))
HARMLESS_ALONE = {"NEWOBJ", "via getattr", "attribute of a stand-in", "torch.load",
                  "torch's own unsafe"}  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
def test_nothing_runs(tmp_path, name):
    mark = tmp_path / "mark"
    program = evil_programs(mark)[name]
    for layout, build in LAYOUTS.items():
        path = tmp_path / f"{layout}.bin"
        path.write_bytes(build(program))
        with pytest.raises(UserError, match="nothing in it was run") as error:
            read_weights(path)
        assert str(path) in str(error.value)
        assert not mark.exists()
    if name not in HARMLESS_ALONE:  # the test itself is worth something: elsewhere it would run
        with pytest.MonkeyPatch.context() as patch:
            patch.chdir(tmp_path)
            pickle.loads(program)
        assert mark.exists()


STORAGE = b"(X\7\0\0\0storagectorch\nFloatStorage\nX\1\0\0\x000X\3\0\0\0cpuK\6"
TENSOR = b"ctorch._utils\n_rebuild_tensor_v2\n(" + STORAGE + b"%stQ"


def tensor(offset: bytes, shape: bytes, strides: bytes, older: bool = False) -> bytes:
    place = TENSOR % (b"N" if older else b"")
    return place + offset + shape + strides + b"\x89ccollections\nOrderedDict\n)RtR"


def named(value: bytes) -> bytes:
    return b"\x80\x02}X\1\0\0\0w" + value + b"s."


def test_an_odd_escape_is_refused_without_a_warning(tmp_path):
    path = tmp_path / "x.bin"
    path.write_bytes(as_zip(b"\x80\x02S'\\z'\n."))
    with pytest.raises(UserError, match="uses the operation STRING"):
        read_weights(path)


def test_the_hand_made_tensor_is_read(tmp_path):
    """So that what is refused below is refused for its fault."""
    for layout, build in LAYOUTS.items():
        program = named(tensor(b"K\0", b"K\2K\3\x86", b"K\3K\1\x86", layout == "older"))
        path = tmp_path / f"{layout}.bin"
        path.write_bytes(build(program))
        np.testing.assert_array_equal(read_weights(path)["w"], np.arange(6.0).reshape(2, 3))


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (tensor(b"K\1", b"K\2K\3\x86", b"K\3K\1\x86"), "beyond its storage"),
        (tensor(b"K\0", b"K\2K\4\x86", b"K\3K\1\x86"), "beyond its storage"),
        (tensor(b"K\0", b"J\xff\xff\xff\x7fK\1\x86", b"K\0K\0\x86"), "beyond its storage"),
        (tensor(b"J\xff\xff\xff\xff", b"K\1\x85", b"K\1\x85"), "impossible sizes"),
        (tensor(b"K\0", b"K\2\x85", b"J\xff\xff\xff\xff\x85"), "impossible sizes"),
        (tensor(b"K\0", b"G\x3f\xf0\0\0\0\0\0\0\x85", b"K\1\x85"), "impossible sizes"),
        (tensor(b"K\0", b"K\2K\3\x86", b"K\3\x85"), "without a storage"),
        (b"K\5", "is not a tensor"),
        (b"ccollections\nOrderedDict\n)R", "is not a tensor"),
        (b"ctorch\nFloatStorage\n}X\5\0\0\0dtypeK\1sb", "nothing in it was run"),
        (b"ctorch._utils\n_rebuild_tensor_v2\nN}X\x08\0\0\0__call__K\1s\x86b", "nothing in it"),
        (b"ccollections\nOrderedDict\n}X\5\0\0\0clearK\1sb", "nothing in it was run"),
        (b"ctorch._utils\n_rebuild_tensor_v2\n)R", "nothing in it was run"),
        (b"r\xff\xff\xff\x7f", "memo index"),
        (b"(" * 100, "nothing in it was run"),
    ],
)
def test_impossible_tensors_are_refused(tmp_path, value, message):
    path = tmp_path / "x.bin"
    path.write_bytes(as_zip(named(value)))
    with pytest.raises(UserError, match=message):
        read_weights(path)


@pytest.mark.parametrize(
    "key",
    [
        b")" + b"\x85" * 2_000_000,  # hashing it would use up the C stack
        b")q\0" + b"".join(b"h%ch%c\x86q%c" % (i, i, i + 1) for i in range(60)),  # or take for ever
        b"K\1",
        b"ccollections\nOrderedDict\n((X\1\0\0\0wK\1ttR",
    ],
    ids=["nested", "doubled", "number", "a dict out of items"],
)
def test_keys_that_are_no_strings(tmp_path, key):
    path = tmp_path / "x.bin"
    for build in LAYOUTS.values():
        path.write_bytes(build(b"\x80\x02}" + key + b"K\1s."))
        with pytest.raises(UserError, match="nothing in it was run"):
            read_weights(path)


def test_two_names_of_one_storage_must_agree(tmp_path):
    other = tensor(b"K\0", b"K\2\x85", b"K\1\x85").replace(b"FloatStorage", b"HalfStorage")
    value = tensor(b"K\0", b"K\2\x85", b"K\1\x85")
    path = tmp_path / "x.bin"
    path.write_bytes(as_zip(b"\x80\x02}X\1\0\0\0w" + value + b"sX\1\0\0\0v" + other + b"s."))
    with pytest.raises(UserError, match="described in two ways"):
        read_weights(path)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_damaged_files_are_refused(tmp_path, layout):
    program = named(tensor(b"K\0", b"K\2K\3\x86", b"K\3K\1\x86", layout == "older"))
    data = LAYOUTS[layout](program)
    path = tmp_path / "x.bin"
    for cut in range(0, len(data), 7):
        path.write_bytes(data[:cut])
        with pytest.raises(UserError, match="x.bin"):
            read_weights(path)


def test_flipped_bytes_never_crash(tmp_path):
    """The zip layout carries a checksum of the numbers; the program in it is checked when run."""
    program = named(tensor(b"K\0", b"K\2K\3\x86", b"K\3K\1\x86"))
    data = as_zip(program)
    path = tmp_path / "x.bin"
    numbers = data.index(np.arange(6, dtype=np.float32).tobytes())
    for at in range(len(data)):
        path.write_bytes(data[:at] + bytes([data[at] ^ 0x41]) + data[at + 1 :])
        try:
            read = read_weights(path)
        except UserError:
            continue
        assert not numbers <= at < numbers + 24, "a changed number went unnoticed"
        assert all(array.dtype.kind in "fiub" for array in read.values())


def test_compressed_members_and_other_orders_are_refused(tmp_path):
    path = tmp_path / "x.bin"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        good = named(tensor(b"K\0", b"K\6\x85", b"K\1\x85"))
        file.writestr("archive/data.pkl", good)
        file.writestr("archive/data/0", np.arange(6, dtype=np.float32).tobytes())
    with pytest.raises(UserError, match="compressed"):
        read_weights(path)
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("archive/data.pkl", named(b"K\1"))
        file.writestr("archive/byteorder", "big")
    with pytest.raises(UserError, match="little-endian"):
        read_weights(path)
    path.write_bytes(MAGIC + PROTOCOL + pickle.dumps({"little_endian": False}, 2))
    with pytest.raises(UserError, match="little-endian"):
        read_weights(path)
