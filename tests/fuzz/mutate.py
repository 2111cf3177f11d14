"""Ways to damage a file: by bytes, by lines, by the structure that its ending promises."""

import io
import json
import os
import re
import zipfile

import safetensors.torch
import torch

DEEP = "[" * 3000 + "]" * 3000
NUMBERS = [0, 1, -1, 3, 0.5, -0.0, 1e308, float("nan"), float("inf"), 2**31, 2**63, 10**400]
STRINGS = ["", " ", "x", "é\u2028\x00", "\ud800", "x" * 100_000, "../../etc/passwd", "(a+)+$"]
OBJECTS = [None, True, False, [], {}, [[]], [None], {"": 0}, [1] * 1000, {"a": {"b": [1, {}]}}]
ODD_VALUES = NUMBERS + STRINGS + OBJECTS
ODD_TEXTS = [
    *(b"", b"\x00", b"\xff\xfe", b"\xef\xbb\xbf", b"{", b"}", b'"', b"\\", b"\r", b"\n\n", b"["),
    *(DEEP.encode(), b"1" * 5000, b"NaN", b"1e999", b"a." * 5000, b"x" * 100_000),
    *("\u2028é".encode(), b"\xed\xa0\x80"),
]


def damage(file, rng):
    """Damage a file in one way that suits it; return which."""
    whole = file.read_bytes()
    ways = [flip, *BYTEWISE]
    if file.suffix in (".json", ".jsonl", ".toml", ".txt", ".csv", ".jinja", ".yaml"):
        ways += [odd_text, odd_text, change_line]
    if file.suffix in (".json", ".jsonl"):
        ways += [change_json] * 6
    if file.suffix == ".toml":
        ways += [change_toml] * 6
    if file.suffix == ".safetensors":
        ways += [change_tensors] * 5 + [change_header] * 3
    if file.suffix in (".pth", ".bin"):
        ways += [change_member] * 4
    way = rng.choice(ways)
    file.write_bytes(way(whole, rng))
    return way


def huge(file):
    with file.open("wb") as opened:
        opened.truncate(1 << 42)


# What may stand where a file is expected; these are tried for every file.
IN_ITS_PLACE = {
    "nothing": lambda file: None,
    "a folder": lambda file: file.mkdir(),
    "a pipe": os.mkfifo,
    "a device": lambda file: file.symlink_to("/dev/zero"),
    "a link to itself": lambda file: file.symlink_to(file.name),
    "an empty file": lambda file: file.write_bytes(b""),
    "zeros": lambda file: file.write_bytes(bytes(1000)),
    "a huge file": huge,
}


def flip(whole, rng):
    """Flip one to three bits."""
    found = bytearray(whole)
    for _ in range(rng.randint(1, 3)):
        if found:
            found[rng.randrange(len(found))] ^= 1 << rng.randrange(8)
    return bytes(found)


def span(whole, rng):
    """Two positions in order, mostly near to each other."""
    first = rng.randrange(len(whole) + 1)
    return first, min(len(whole), first + rng.choice([1, 2, 8, 64, len(whole)]))


def overwrite(whole, rng):
    first, last = span(whole, rng)
    return whole[:first] + rng.choice([bytes, rng.randbytes])(last - first) + whole[last:]


def cut(whole, rng):
    first, last = span(whole, rng)
    return whole[:first] + whole[last:]


def insert(whole, rng):
    first, last = span(whole, rng)
    return whole[:last] + whole[first:last] + whole[last:]


def swap(whole, rng):
    first, last = span(whole, rng)
    return whole[last:] + whole[first:last] + whole[:first]


def odd_text(whole, rng):
    first, last = span(whole, rng)
    return whole[:first] + rng.choice(ODD_TEXTS) + whole[rng.choice([first, last]) :]


def change_line(whole, rng):
    lines = whole.split(b"\n")
    index = rng.randrange(len(lines))
    lines[index : index + 1] = rng.choice([[], [lines[index]] * 2, [b""], [rng.choice(lines)]])
    return b"\n".join(lines)


def change_json(whole, rng):
    """Replace, remove or add one value of an object, or of one line's."""
    lines = whole.split(b"\n")
    start = rng.randrange(len(lines))
    for part in (lines[start], whole):
        try:
            content = json.loads(part)
        except ValueError:
            continue
        changed = json.dumps(change_value(content, rng)).encode("utf-8", "surrogatepass")
        return (
            b"\n".join([*lines[:start], changed, *lines[start + 1 :]]) if part != whole else changed
        )
    return whole


def change_value(content, rng):
    """One value, at any depth."""
    places = [(None, None)]

    def walk(node):
        for key in node if isinstance(node, dict) else range(len(node)):
            places.append((node, key))
            if isinstance(node[key], dict | list):
                walk(node[key])

    if isinstance(content, dict | list):
        walk(content)
    node, key = rng.choice(places)
    if node is None:
        return rng.choice(ODD_VALUES)
    if rng.random() < 0.2:
        del node[key]
    elif isinstance(node, dict) and rng.random() < 0.1:
        node[rng.choice(["", "extra", "x" * 1000, "__class__"])] = rng.choice(ODD_VALUES)
    elif isinstance(node[key], int | float) and rng.random() < 0.5:
        node[key] = rng.choice(
            [node[key] + 1, -node[key], node[key] * 1000, node[key] / 2, str(node[key])]
        )
    else:
        node[key] = rng.choice(ODD_VALUES)
    return content


def change_toml(whole, rng):
    """Another value, name or table header on a line."""
    lines = whole.decode().split("\n")
    index = rng.randrange(len(lines))
    value = json.dumps(rng.choice(ODD_VALUES)).replace("null", "nan").replace("Infinity", "inf")
    dotted = ".".join(["a"] * rng.choice([2, 50, 3000]))
    lines[index] = rng.choice(
        [
            re.sub(r"=.*", lambda _: f"= {value}", lines[index]),
            re.sub(r"^\w+", "other", lines[index]),
            f"{lines[index]}\n{lines[index]}",
            f"[{dotted}]",
            f"{dotted} = {value}",
            f"x = {DEEP}",
        ]
    )
    return "\n".join(lines).encode("utf-8", "surrogatepass")


def change_tensors(whole, rng):
    """Well-formed, and by a program that writes no checksum."""
    tensors = safetensors.torch.load(whole)
    name = rng.choice(sorted(tensors))
    value = tensors.pop(name)
    change = rng.choice(
        [
            lambda x: x * float("nan"),
            lambda x: x.double() * 1e300,
            lambda x: x.half(),
            lambda x: x.to(torch.float8_e4m3fn),
            lambda x: x.long(),
            lambda x: x.bool(),
            lambda x: x.T.contiguous() if x.ndim == 2 else x[None],
            lambda x: x.flatten(),
            lambda x: x.flatten()[:0],
            lambda x: torch.cat([x, x]) if x.ndim else x,
            lambda x: torch.zeros([1] * 9),
        ]
    )
    if rng.random() < 0.8:
        tensors[
            rng.choice([name, name, name, f"{name}x", "", rng.choice([*sorted(tensors), name])])
        ] = change(value)
    return safetensors.torch.save(tensors)


def change_header(whole, rng):
    """Other names, shapes, dtypes, places or texts for the same bytes."""
    size = int.from_bytes(whole[:8], "little")
    header = json.dumps(change_value(json.loads(whole[8 : 8 + size]), rng))
    header = header.encode("utf-8", "surrogatepass")
    length = rng.choice([len(header), len(header), len(header) + 1, 0, 1 << 40])
    return length.to_bytes(8, "little") + header + whole[8 + size :]


def change_member(whole, rng):
    """A zip that is whole, with one damaged member."""
    with zipfile.ZipFile(io.BytesIO(whole)) as archive:
        members = {member.filename: archive.read(member) for member in archive.infolist()}
    name = rng.choice(sorted(members))
    members[name] = rng.choice([flip, flip, overwrite, cut, insert])(members[name], rng)
    written = io.BytesIO()
    kind = rng.choice([zipfile.ZIP_STORED] * 4 + [zipfile.ZIP_DEFLATED])
    with zipfile.ZipFile(written, "w", kind) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return written.getvalue()


BYTEWISE = (flip, overwrite, cut, insert, swap)
