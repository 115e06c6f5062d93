"""Random changes of files: of their bytes, of the values in JSON and YAML, and of their words and lines."""

import json
import re

import yaml
from hypothesis import strategies as st

INTERESTING = st.sampled_from([0, 1, 127, 128, 255])
PLACE = st.integers(0, 2**16 - 1).map(lambda number: number / 2**16)
"""A fraction of a length."""
EDIT = st.tuples(
    st.sampled_from(["set", "set", "insert", "delete", "cut", "splice", "long"]),
    PLACE,
    INTERESTING | st.integers(0, 255),
    PLACE,
)
"""A change of bytes, see `edited`."""

_WORDS = [
    "",
    " ",
    "0",
    "-1",
    "1.5",
    "nan",
    "car",
    "void",
    "ignore",
    "a" * 300,
    "a/" * 2100,
    "../x",
    "/",
    "é",
    "1,2,3",
    "#ff0000",
]
_ODD = [
    "\0",
    "a\0b",
    "\ud800",
    "\u2028",
    "\x85",
    "٣",
    "²",
    "1_0",
    "9" * 5000,
    "1e400",
    "*",
    "[",
    "{",
    "%",
    "~",
    "\\",
    '"',
    "'",
]
_NUMBERS = [0, 1, -1, 2, 3, 7, 255, 256, 300, 65536, 2**31, 2**63, -(2**63), 2**64, 10**30, 10**400, -5]
_FLOATS = [0.0, -0.0, 0.5, 1e-320, 1e308, -1e308, 1e18, float("nan"), float("inf"), float("-inf")]
SCALARS = st.one_of(
    st.sampled_from([None, True, False]),
    st.sampled_from(_NUMBERS),
    st.sampled_from(_FLOATS),
    st.sampled_from(_WORDS + _ODD),
    st.integers(-5, 300),
    st.floats(-10, 300),
    st.text(max_size=6),
)
_KEYS = st.sampled_from(["", "id", "name", "x", "0"])
VALUES = st.recursive(
    SCALARS,
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from(["", "id", "name", "x", "0"]), inner, max_size=3)
    ),
    max_leaves=5,
)
"""Anything that JSON can say, and numbers that it should not."""
CHANGE = st.tuples(
    st.sampled_from(["replace", "replace", "replace", "remove", "rename", "wrap", "copy", "twice", "deep"]),
    PLACE,
    PLACE,
    VALUES,
)
"""A change of the values in a file, see `changed`."""
TYPO = st.tuples(st.sampled_from(["word", "word", "line", "drop", "double", "join", "mark"]), PLACE, SCALARS)
"""A change of a text, see `retyped`."""
DEEP = 2000


def edited(data: bytes, edits) -> bytes:
    """Bytes after some changes, each at a fraction of their length."""
    for what, place, value, other in edits:
        at, source = int(place * len(data)), int(other * len(data))
        match what:
            case "set":
                data = data[:at] + bytes([value]) + data[at + 1 :]
            case "insert":
                data = data[:at] + bytes([value]) * (1 + value % 9) + data[at:]
            case "delete":
                data = data[:at] + data[at + 1 + value % 9 :]
            case "cut":
                data = data[:at]
            case "splice":
                data = data[:at] + data[source : source + value] + data[at + value :]
            case "long":
                data = data[:at] + b"\xff" * 9 + b"\x01" + data[at + 10 :]
    return data


def changed(value, changes):
    """Plain values, as from JSON, after some changes at any depth; the original stays as it is."""
    holder = [json.loads(json.dumps(value))]
    for what, place, other, new in changes:
        spots = list(_spots(holder))
        node, key = spots[int(place * len(spots))]
        source, source_key = spots[int(other * len(spots))]
        match what:
            case "replace":
                node[key] = new
            case "remove" if node is not holder:
                del node[key]
            case "rename" if isinstance(node, dict):
                node[str(new)] = node.pop(key)
            case "wrap":
                node[key] = [node[key]]
            case "copy":
                node[key] = json.loads(json.dumps(source[source_key]))
            case "twice" if isinstance(node[key], list):
                node[key] = node[key] * 2
            case "deep":
                node[key] = {"deep": 1} if isinstance(node, dict) else ["deep"]
    return holder[0]


def _spots(node):
    """Every place of a value: its list or table, and its index or key."""
    for key in list(node) if isinstance(node, dict) else range(len(node)):
        yield node, key
        if isinstance(node[key], dict | list):
            yield from _spots(node[key])


def as_json(value) -> bytes:
    """As a JSON file, a value in each line."""
    return json.dumps(value, indent=0).replace('"deep"', "[" * DEEP, 1).encode()


def as_yaml(value) -> bytes:
    """As a YAML file."""
    return yaml.safe_dump(value).replace("deep", "[" * 300, 1).encode("utf-8", "surrogatepass")


def retyped(data: bytes, typos) -> bytes:
    """A text after some changes of words and lines."""
    text = data.decode("utf-8", "replace")
    for what, place, value in typos:
        new = value if isinstance(value, str) else json.dumps(value)
        words = [match.span() for match in re.finditer(r"[\w.+-]+|[^\w\s]", text)]
        lines = text.split("\n")
        line = int(place * len(lines))
        start, end = words[int(place * len(words))] if words else (0, 0)
        match what:
            case "word":
                text = text[:start] + new + text[end:]
            case "drop":
                text = text[:start] + text[end:]
            case "line":
                text = "\n".join([*lines[:line], new, *lines[line + 1 :]])
            case "double":
                text = "\n".join([*lines[: line + 1], *lines[line:]])
            case "join":
                text = "\n".join(lines[:line]) + "".join(lines[line:])
            case "mark":
                text = {0: "\ufeff" + text, 1: text.replace("\n", "\r"), 2: text.replace("\n", "\r\n")}[line % 3]
    return text.encode("utf-8", "surrogatepass")
