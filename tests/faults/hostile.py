"""Files that somebody means harm with, or that were damaged: made here, by name and by seed, for the tests to open.

A payload would make the file `canary` if anything ran it.
"""

from __future__ import annotations

import builtins
import importlib
import io
import json
import operator
import os
import pickle
import random
import runpy
import struct
import subprocess
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch

__all__ = ["CASES", "Case", "Payload"]

SUFFIXES = (".safetensors", ".SafeTensors", ".ckpt", ".pt", ".pth", ".bin")


class Case(NamedTuple):
    """`make(folder, canary)` writes the file or the pipeline's folder and returns its path."""

    name: str
    make: Callable[[Path, Path], Path]


class Payload:
    """Runs something when it is unpickled."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.call = (function, arguments)

    def __reduce__(self) -> Any:
        return self.call


def payloads(canary: Path) -> list[Payload]:
    code = f"open({str(canary)!r}, 'w').close()"
    return [
        Payload(os.system, f"touch {canary}"),
        Payload(builtins.eval, code),
        Payload(builtins.exec, code),
        Payload(subprocess.Popen, ["touch", str(canary)]),
        Payload(subprocess.check_output, ["touch", str(canary)]),
        Payload(Path.touch, canary),
        Payload(builtins.open, str(canary), "w"),
        Payload(os.mkdir, str(canary)),
        Payload(importlib.import_module, "antigravity"),
        Payload(runpy.run_path, str(canary)),
        Payload(operator.methodcaller, "system", f"touch {canary}"),
        Payload(torch.load, str(canary)),  # noqa: TID251
    ]


def data(name: str, content: Callable[[Path], bytes] | bytes) -> Case:
    def make(folder: Path, canary: Path) -> Path:
        (folder / name).write_bytes(content if isinstance(content, bytes) else content(canary))
        return folder / name

    return Case(name, make)


# --- safetensors ------------------------------------------------------------------------------------------------------


def head(body: Any, size: int) -> bytes:
    text = body if isinstance(body, bytes) else json.dumps(body).encode()
    return len(text).to_bytes(8, "little") + text + bytes(size)


def entry(start: int, end: int, shape: Any = None, dtype: Any = "U8") -> dict[str, Any]:
    return {"dtype": dtype, "shape": [end - start] if shape is None else shape, "data_offsets": [start, end]}


BODY = {f"block.{i}.weight": entry(8 * i, 8 * i + 8, [2], "F32") for i in range(12)}


def safetensors() -> Iterator[Case]:
    named: dict[str, bytes] = {
        "overlap": head({"a": entry(0, 4), "b": entry(2, 6)}, 6),
        "same bytes twice": head({"a": entry(0, 4), "b": entry(0, 4)}, 4),
        "gap": head({"a": entry(0, 4), "b": entry(6, 10)}, 10),
        "beyond the file": head({"a": entry(0, 1 << 40)}, 4),
        "bytes left over": head({"a": entry(0, 4)}, 9),
        "negative offsets": head({"a": entry(-4, 0)}, 4),
        "reversed offsets": head({"a": entry(4, 0, [4])}, 4),
        "size overflows": head({"a": entry(0, 4, [1 << 32, 1 << 32], "F64")}, 4),
        "size overflows to zero": head({"a": entry(0, 0, [1 << 62, 4])}, 0),
        "shape of floats": head({"a": entry(0, 4, [4.0])}, 4),
        "shape of truths": head({"a": entry(0, 1, [True])}, 1),
        "shape of texts": head({"a": entry(0, 4, ["4"])}, 4),
        "ten thousand dimensions": head({"a": entry(0, 1, [1] * 10_000)}, 1),
        "no such dtype": head({"a": entry(0, 4, dtype="F128")}, 4),
        "dtype of code": head({"a": entry(0, 4, dtype="__import__('os').system('x')")}, 4),
        "dtype is a list": head({"a": entry(0, 4, dtype=["U8"])}, 4),
        "no dtype": head({"a": {"shape": [4], "data_offsets": [0, 4]}}, 4),
        "another key": head({"a": {**entry(0, 4), "pickle": "gASV"}}, 4),
        "entry is a number": head({"a": 3}, 4),
        "metadata of numbers": head({"__metadata__": {"a": 1}, "a": entry(0, 4)}, 4),
        "metadata is a list": head({"__metadata__": ["a"], "a": entry(0, 4)}, 4),
        "broken further names": head({"__metadata__": {"carrara.aliases": '{"b": "c"}'}, "a": entry(0, 4)}, 4),
        "name twice": head(b'{"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},"a":{"dtype":"U8"}}', 1),
        "key twice": head(b'{"a":{"dtype":"U8","shape":[1],"shape":[9],"data_offsets":[0,1]}}', 1),
        "head is a list": head([], 0),
        "head is a number": head(b"7", 0),
        "head is empty": head(b"", 0),
        "head is spaces": head(b" " * 64, 0),
        "head is cut": (999).to_bytes(8, "little") + b'{"a":',
        "head is as long as can be": b"\xff" * 8 + b"{}",
        "head overflows with its place": ((1 << 64) - 8).to_bytes(8, "little") + b"{}",
        "deep": head(b'{"a":' * 100_000, 0),
        "deep lists": head(b'{"a":' + b"[" * 100_000, 0),
        "number of ten thousand digits": head(b'{"a":' + b"9" * 10_000 + b"}", 0),
        "not utf-8": head(b'{"\xff\xfe":{}}', 0),
        "lone surrogate": head(b'{"\\ud800":{"dtype":"U8","shape":[2],"data_offsets":[0,1]}}', 1),
        "nan as a size": head(b'{"a":{"dtype":"U8","shape":[NaN],"data_offsets":[0,1]}}', 1),
        "terminal codes in a name": head({"\x1b[2J\r\n": entry(0, 3, [4])}, 3),
        "a name of a million letters": head({"a" * 1_000_000: entry(0, 3, [4])}, 3),
        "ten bytes": b"0123456789",
    }
    for name, content in named.items():
        yield data(f"{name}.safetensors", content)
    yield Case("giant head", giant_head)
    yield Case("giant file of nothing", giant_zeros)
    whole = head(BODY, 96)
    for end in range(0, len(whole), max(1, len(whole) // 30)):
        yield data(f"cut at {end}.safetensors", whole[:end])
    rng = random.Random(1)
    text = json.dumps(BODY).encode()
    structure = [i for i, sign in enumerate(text) if sign in b'{}[]":,']
    for i in range(50):
        place = rng.choice(structure)
        yield data(f"head broken {i}.safetensors", head(text[:place] + b"x" + text[place + 1 :], 96))
    for i in range(50):
        body = json.loads(text)
        told = body[rng.choice(list(body))]
        match rng.randrange(4):
            case 0:
                told["data_offsets"][rng.randrange(2)] += rng.choice([-1, 1, 4, 1 << 20, 1 << 62])
            case 1:
                told["shape"] = [rng.choice([3, 1 << 31, 1 << 62]), rng.choice([2, 1 << 20])]
            case 2:
                told["dtype"] = rng.choice(["F16", "F64", "f32", "", "U128"])
            case 3:
                del told[rng.choice(list(told))]
        yield data(f"entry broken {i}.safetensors", head(body, 96))


def giant_head(folder: Path, canary: Path) -> Path:
    path = folder / "giant.safetensors"
    with open(path, "wb") as file:
        file.write((99 << 20).to_bytes(8, "little") + b'{"')
        file.truncate(100 << 20)
    return path


def giant_zeros(folder: Path, canary: Path) -> Path:
    path = folder / "zeros.safetensors"
    with open(path, "wb") as file:
        file.truncate(1 << 40)
    return path


# --- torch.save -------------------------------------------------------------------------------------------------------

MAGIC = pickle.dumps(0x1950A86A20F9469CFC6C, 2) + pickle.dumps(1001, 2)
SYSTEM = pickle.dumps({"protocol_version": 1001, "little_endian": True, "type_sizes": {}}, 2)


def legacy(value: bytes, keys: bytes = pickle.dumps([], 2), rest: bytes = b"", system: bytes = SYSTEM) -> bytes:
    return MAGIC + system + value + keys + rest


def zipped(value: bytes, members: dict[str, bytes] | None = None, compression: int = zipfile.ZIP_STORED) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", compression) as archive:
        for name, content in {"a/data.pkl": value, "a/version": b"3\n", **(members or {})}.items():
            archive.writestr(name, content)
    return stream.getvalue()


def tensor(
    numbers: int = 2, offset: int = 0, shape: tuple[Any, ...] = (2,), stride: tuple[Any, ...] = (1,),
    dtype: str = "FloatStorage", key: Any = "0", kind: str = "storage",
) -> bytes:  # fmt: skip
    """The pickle of {"a": a tensor}, written instruction by instruction."""

    def put(value: Any) -> bytes:
        return pickle.dumps(value, 2)[2:-1]  # without its beginning and its end

    storage = b"(" + put(kind) + b"ctorch\n" + dtype.encode() + b"\n" + put(key) + put("cpu") + put(numbers) + b"tQ"
    view = b"ctorch._utils\n_rebuild_tensor_v2\n(" + storage + put(offset) + put(shape) + put(stride)
    return b"\x80\x02}" + put("a") + view + b"\x89ccollections\nOrderedDict\n)RtRs."


GOOD = {"a/data/0": struct.pack("<2f", 1, 2)}


def torch_files() -> Iterator[Case]:
    for i in range(12):
        for protocol in range(6):
            name = f"plain pickle {i} {protocol}{SUFFIXES[(i + protocol) % 6]}"
            yield data(name, lambda canary, i=i, p=protocol: pickle.dumps(payloads(canary)[i], p))
    for i in range(12):
        yield data(f"old {i}.ckpt", lambda canary, i=i: legacy(pickle.dumps({"a": payloads(canary)[i]}, 2)))
        yield data(f"new {i}.pt", lambda canary, i=i: zipped(pickle.dumps({"a": payloads(canary)[i]}, 2)))
    yield data("before the state.ckpt", lambda canary: legacy(b"", system=pickle.dumps(payloads(canary)[0], 2)))
    yield data("after the state.ckpt", lambda canary: legacy(tensor(), keys=pickle.dumps(payloads(canary)[0], 2)))
    yield data("called safetensors.safetensors", lambda canary: zipped(pickle.dumps(payloads(canary)[1], 4)))
    yield data("as a key.pt", lambda canary: zipped(pickle.dumps({payloads(canary)[0]: 1}, 2)))
    for name, pickled in pickles().items():
        yield data(f"{name}.pt", zipped(pickled, GOOD))
    for name, content in archives().items():
        yield data(f"{name}.ckpt", content)
    whole = zipped(tensor(), GOOD)
    for end in range(4, len(whole), len(whole) // 20):
        yield data(f"zip cut at {end}.pt", whole[:end])
    old = legacy(tensor(), pickle.dumps(["0"], 2), (2).to_bytes(8, "little") + GOOD["a/data/0"])
    for end in range(4, len(old), len(old) // 14):
        yield data(f"old cut at {end}.pt", old[:end])
    yield data("old with more behind it.pt", old + b"\0")
    rng = random.Random(2)
    inside = whole.index(b"\x80\x02}"), whole.index(b"\x80\x02}") + len(tensor())
    for i in range(20):
        changed = bytearray(whole)
        changed[rng.randrange(*inside)] ^= 1 << rng.randrange(8)
        yield data(f"zip changed {i}.pt", bytes(changed))


def pickles() -> dict[str, bytes]:
    """Pickles that ask for more than a state dict needs, or describe one that cannot be."""
    nest = b"\x80\x02}X\x01\x00\x00\x00a" + b"K\x00" + b"".join(b"2\x86" for _ in range(60))  # DUP TUPLE2, 60 times
    laughs = b"\x80\x02)q\x00" + b"".join(b"h\x00h\x00\x86q\x00" for _ in range(60))
    return {
        "instruction inst": b"(S'x'\nios\nsystem\n.",
        "instruction obj": b"(cos\nsystem\nS'x'\no.",
        "instruction newobj": b"\x80\x02cos\nsystem\n)\x81.",
        "instruction newobj_ex": b"\x80\x04\x8c\x02os\x8c\x06system\x93)}\x92.",
        "instruction ext1": b"\x80\x02\x82\x01.",
        "instruction persid": b"\x80\x02Px\n.",
        "instruction frozenset": b"\x80\x04(\x91.",
        "instruction bytearray8": b"\x80\x05\x96" + (1 << 50).to_bytes(8, "little") + b"x.",
        "instruction next_buffer": b"\x80\x05\x97.",
        "build of a name": b"\x80\x02cos\nenviron\n}b.",
        "reduce of a text": b"\x80\x02X\x01\x00\x00\x00a)R.",
        "name by text": b"\x80\x04\x8c\x05posix\x8c\x06system\x93\x8c\x01x\x85R.",
        "a key that takes for ever to hash": b"\x80\x02}" + laughs[2:] + b"K\x01s.",
        "a value that takes for ever to print": laughs[:2] + b"}X\x01\x00\x00\x00a" + laughs[2:] + b"s.",
        "doubled sixty times": nest + b"s.",
        "lists in themselves": b"\x80\x02]q\x00h\x00a.",
        "nothing on the stack": b"\x80\x020.",
        "nothing to reduce": b"\x80\x02R.",
        "a mark that is not there": b"\x80\x02t.",
        "a memo that is not there": b"\x80\x02h\x07.",
        "without end": b"\x80\x02" + b"N" * 50,
        "a million instructions": b"\x80\x02" + b"N" * 1_000_000 + b".",
        "a long text": b"\x80\x02X\xff\xff\xff\xffabc.",
        "a long number": b"\x80\x02\x8b\xff\xff\xff\x7f\x01.",
        "a text of a number": b"I" + b"9" * 50_000 + b"\n.",
        "no pickle": b"\x00\x01\x02",
        "empty pickle": b"",
        "a list": pickle.dumps([1, 2], 2),
        "numbers": pickle.dumps({"a": 1}, 2),
        "beyond its storage": tensor(shape=(3,)),
        "beyond by its offset": tensor(offset=1),
        "beyond by its stride": tensor(stride=(2,)),
        "offset overflows": tensor(offset=(1 << 62) - 1),
        "offset below zero": tensor(offset=-4),
        "stride below zero": tensor(stride=(-1,)),
        "shape below zero": tensor(shape=(-2,)),
        "shape of texts": tensor(shape=("2",)),
        "shape without strides": tensor(shape=(1, 2)),
        "shape of two million million": tensor(shape=(1 << 41,), stride=(0,)),
        "more numbers than bytes": tensor(numbers=1 << 40),
        "fewer numbers than bytes": tensor(numbers=1, shape=(1,)),
        "numbers below zero": tensor(numbers=-2),
        "numbers of no kind": tensor(dtype="SystemStorage"),
        "storage of no kind": tensor(kind="module"),
        "storage that is missing": tensor(key="1"),
        "storage by a path": tensor(key="../../etc/passwd"),
        "storage by a number": tensor(key=0),
    }


def archives() -> dict[str, bytes]:
    good = zipped(tensor(), GOOD)
    twice = io.BytesIO(good)
    with zipfile.ZipFile(twice, "a") as archive:
        archive.writestr("b/data.pkl", tensor())
    offset = good.rindex(b"PK\x05\x06")
    return {
        "compressed": zipped(tensor(), GOOD, zipfile.ZIP_DEFLATED),
        "a bomb": zipped(tensor(numbers=1 << 22, shape=(1 << 22,)), {"a/data/0": bytes(1 << 24)}, zipfile.ZIP_DEFLATED),
        "bzip2": zipped(tensor(), GOOD, zipfile.ZIP_BZIP2),
        "lzma": zipped(tensor(), GOOD, zipfile.ZIP_LZMA),
        "encrypted": good.replace(b"PK\x01\x02\x14\x03\x14\x00\x00\x00", b"PK\x01\x02\x14\x03\x14\x00\x01\x00"),
        "another archive": zipped(tensor(), GOOD).replace(b"a/data.pkl", b"a/data.txt"),
        "torchscript": zipped(tensor(), {**GOOD, "a/code/a.py": b"x", "a/constants.pkl": b"x"}),
        "two pickles": twice.getvalue(),
        "big-endian": zipped(tensor(), {**GOOD, "a/byteorder": b"big"}),
        "a huge pickle": zipped(tensor() + bytes(33 << 20), GOOD),
        "list of members elsewhere": good[: offset + 16] + b"\xff\xff\xff\x7f" + good[offset + 20 :],
        "member elsewhere": good.replace(bytes(4) + b"a/data.pkl", b"\x07\0\0\0a/data.pkl"),
        "empty archive": b"PK\x05\x06" + bytes(18),
        "numbers changed": good.replace(GOOD["a/data/0"], struct.pack("<2f", 1, 3)),
        "old big-endian": legacy(tensor(), system=SYSTEM.replace(b"little_endianq\x02\x88", b"little_endianq\x02\x89")),
        "old storages of others": legacy(tensor(), pickle.dumps(["1"], 2)),
        "old storages twice": legacy(tensor(), pickle.dumps(["0", "0"], 2)),
        "old storages are no list": legacy(tensor(), pickle.dumps("0", 2)),
        "old length differs": legacy(tensor(), pickle.dumps(["0"], 2), (3).to_bytes(8, "little") + bytes(12)),
    }  # fmt: skip


# --- folders ----------------------------------------------------------------------------------------------------------

WEIGHTS = "diffusion_pytorch_model.safetensors"
Change = Callable[[Path, Path], None]


def pipeline(name: str, change: Change) -> Case:
    def make(folder: Path, canary: Path) -> Path:
        place = folder / "pipe"
        (place / "unet").mkdir(parents=True)
        (place / "model_index.json").write_text('{"_class_name": "Pipe", "unet": ["diffusers", "UNet2DModel"]}')
        (place / "unet" / "config.json").write_text("{}")
        (place / "unet" / WEIGHTS).write_bytes(head(BODY, 96))
        (folder / "secret.safetensors").write_bytes(head(BODY, 96))
        change(place, canary)
        return place

    return Case(name, make)


def index(told: Any) -> Change:
    def change(place: Path, canary: Path) -> None:
        (place / "unet" / WEIGHTS).rename(place / "unet" / "shard.safetensors")
        (place / "unet" / f"{WEIGHTS}.index.json").write_text(json.dumps({"weight_map": told}))

    return change


def text(name: str, content: str | bytes) -> Change:
    def change(place: Path, canary: Path) -> None:
        (place / name).write_bytes(content if isinstance(content, bytes) else content.encode())

    return change


def link(name: str, target: str) -> Change:
    def change(place: Path, canary: Path) -> None:
        (place / name).unlink()
        os.symlink(target, place / name)

    return change


def pipe(name: str) -> Change:
    def change(place: Path, canary: Path) -> None:
        (place / name).unlink()
        os.mkfifo(place / name)

    return change


def pickled(name: str) -> Change:
    def change(place: Path, canary: Path) -> None:
        (place / "unet" / WEIGHTS).unlink()
        (place / "unet" / name).write_bytes(zipped(pickle.dumps(payloads(canary)[0], 2)))

    return change


def folders() -> Iterator[Case]:
    all_of = dict.fromkeys(BODY, "shard.safetensors")
    shards = ["../../secret.safetensors", "../secret.safetensors", "/etc/passwd", "..", ".", "", "a/b", "a\\b", "C:x",
              "a\0b", "a\nb", "~/x/y", "file:///etc/passwd", 3, None, ["shard.safetensors"], {"a": 1}]  # fmt: skip
    for i, shard in enumerate(shards):
        yield pipeline(f"shard {i}", index({**all_of, "block.0.weight": shard}))
    yield pipeline("shard missing", index({**all_of, "block.0.weight": "other.safetensors"}))
    yield pipeline("tensor more in the index", index({**all_of, "more": "shard.safetensors"}))
    yield pipeline("tensor less in the index", index({"block.0.weight": "shard.safetensors"}))
    for i, told in enumerate(([], {}, "x", None, 1)):
        yield pipeline(f"index of nothing {i}", index(told))
    for i, name in enumerate(("../secret", "/etc", "a/b", "..", "", "a\\b", "a\0b")):
        body = {"_class_name": "Pipe", name: ["diffusers", "UNet2DModel"]}
        yield pipeline(f"component {i}", text("model_index.json", json.dumps(body)))
    for i, told in enumerate(
        (["os.system('x')", "X"], ["a", "b.c()"], ["../a", "X"], [None, "X"], ["a", None], ["", ""])
    ):
        body = {"_class_name": "Pipe", "unet": told}
        yield pipeline(f"class {i}", text("model_index.json", json.dumps(body)))
    for i, kind in enumerate((None, 3, "a b", "x.py", ["a", "b", "c"], "")):
        body = {"_class_name": kind, "unet": ["diffusers", "UNet2DModel"]}
        yield pipeline(f"pipeline class {i}", text("model_index.json", json.dumps(body)))
    jsons = {
        "empty": "", "cut": '{"a": ', "list": "[]", "deep": "[" * 100_000, "digits": '{"a": ' + "9" * 10_000 + "}",
        "twice": '{"in_channels": 4, "in_channels": 9}', "not utf-8": b'{"\xff": 1}',
    }  # fmt: skip
    for name in ("model_index.json", "unet/config.json"):
        for what, content in jsons.items():
            yield pipeline(f"{name} {what}", text(name, content))
        yield pipeline(f"{name} is a pipe", pipe(name))
        yield pipeline(f"{name} elsewhere", link(name, "/etc/passwd"))
        yield pipeline(f"{name} without end", link(name, "/dev/zero"))
    yield pipeline("weights elsewhere", link(f"unet/{WEIGHTS}", "../../secret.safetensors"))
    yield pipeline("weights without end", link(f"unet/{WEIGHTS}", "/dev/zero"))
    yield pipeline("weights in a loop", link(f"unet/{WEIGHTS}", WEIGHTS))
    yield pipeline("weights are a pipe", pipe(f"unet/{WEIGHTS}"))
    yield pipeline("weights are nowhere", link(f"unet/{WEIGHTS}", "nowhere"))
    for name in ("diffusion_pytorch_model.bin", WEIGHTS, "diffusion_pytorch_model.fp16.safetensors"):
        yield pipeline(f"pickle {name}", pickled(name))


# --- anything ---------------------------------------------------------------------------------------------------------


def others() -> Iterator[Case]:
    for suffix in SUFFIXES:
        yield data(f"empty{suffix}", b"")
    kinds = {
        "7z": b"7z\xbc\xaf'\x1c" + bytes(50), "gzip": b"\x1f\x8b\x08" + bytes(50), "html": b"<!DOCTYPE html>",
        "gguf": b"GGUF" + bytes(50), "hdf5": b"\x89HDF\r\n\x1a\n" + bytes(50), "png": b"\x89PNG\r\n\x1a\n" + bytes(50),
        "elf": b"\x7fELF" + bytes(50), "script": b"#!/bin/sh\ntouch canary\n",
        "lfs": b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "tar": b"sys" + bytes(509) + b"ustar",
        "numpy": b"\x93NUMPY\x01\x00" + bytes(50), "rar": b"Rar!\x1a\x07" + bytes(50),
    }  # fmt: skip
    for name, content in kinds.items():
        yield data(f"{name}.ckpt", content)
        yield data(f"{name}.safetensors", content)
    rng = random.Random(3)
    for i in range(24):
        yield data(f"noise {i}{SUFFIXES[i % 6]}", rng.randbytes(rng.choice([1, 7, 8, 9, 100, 5000])))


CASES = [*safetensors(), *torch_files(), *folders(), *others()]
