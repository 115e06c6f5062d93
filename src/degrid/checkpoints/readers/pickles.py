"""Dictionaries of numpy arrays from pickles, without running anything a pickle says.

Python's unpickler calls what the file names, and numpy's own arrays trust the sizes it states. Here the opcodes are
read as a description: a few names of numpy are understood, nothing is called, and arrays are made from checked bytes.
An unpickler with a list of allowed names would not keep these guarantees (docs/log.md).
Opcodes of protocols 2 to 4, of Python 2 too: `Lib/pickletools.py`; state of an array: `numpy.ndarray.__reduce__`.
"""

from __future__ import annotations

import pickletools
from dataclasses import dataclass
from typing import IO, Any, cast

import numpy as np

from degrid.checkpoints.readers.values import NUMBERS, native, ordered, raw_values
from degrid.protobuf import Span
from degrid.types import ConversionError

_MAX_OPCODES = 300_000  # an array takes about 40, and each may take a hundred bytes of memory
_MAX_DEPTH = 8
_NAME_COST = 100  # bytes that an entry takes besides its name
_LINE = 4096

_VALUES = frozenset(
    [
        *("LONG1", "LONG4", "BININT", "BININT1", "BININT2", "BINFLOAT", "BINSTRING", "SHORT_BINSTRING"),
        *("BINBYTES", "BINBYTES8", "SHORT_BINBYTES", "BINUNICODE", "BINUNICODE8", "SHORT_BINUNICODE"),
    ]
)
_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False, "EMPTY_TUPLE": ()}
_TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}
_KNOWN = frozenset(
    [
        "numpy.core.multiarray _reconstruct",
        "numpy._core.multiarray _reconstruct",
        "numpy.core.multiarray scalar",
        "numpy._core.multiarray scalar",
        "numpy ndarray",
        "numpy dtype",
        "_codecs encode",
        "__builtin__ bytes",
        "collections OrderedDict",
    ]
)


@dataclass
class _Name:
    """A function or class that the pickle names."""

    name: str


@dataclass
class _Dtype:
    """code: "f4"; state: version, byte order, and more."""

    code: object
    state: object = None


@dataclass
class _Array:
    """An array or scalar as the pickle describes it. state: version, shape, dtype, Fortran order, values."""

    state: object = None


class Cursor:
    """A stream over bytes of a file that never makes more of them than there are, whatever it is asked for."""

    def __init__(self, span: Span) -> None:
        self.span, self.at = span, 0

    def read(self, size: int = -1) -> bytes:
        """At most `size` bytes; all where it is negative."""
        found = bytes(self.span.data[self.at :][: size if size >= 0 else None])
        self.at += len(found)
        return found

    def readline(self) -> bytes:
        """Up to the end of a line, or part of a line that is absurdly long."""
        found = bytes(self.span.data[self.at : self.at + _LINE])
        found = found[: found.find(b"\n") + 1] or found
        self.at += len(found)
        return found

    def tell(self) -> int:
        """The position of the next byte."""
        return self.at


def read_pickle(span: Span) -> tuple[dict[str, np.ndarray], list[str]]:
    """The arrays of a pickled dictionary by name, and the names of entries that hold no numbers.

    Dictionaries and lists inside are flattened: {"conv1": {"weights": w}} gives "conv1/weights", {"fc": [w, b]} gives
    "fc/0" and "fc/1". The arrays view the bytes in the pickle's strings.

    Raises:
        ConversionError: it refers to more than numpy arrays and plain values, or is damaged.
    """
    try:
        described = _interpret(span)
    except ConversionError:
        raise
    except Exception as error:  # malformed opcodes raise exceptions of many types
        raise ConversionError(f"{span.file}: a damaged pickle at byte {span.offset} ({error})") from error
    return _Flattener(span).flatten(described)


def _interpret(span: Span) -> Any:
    """What the pickle describes: dicts, lists, tuples, plain values, and _Array."""
    machine = _Machine()
    for count, (opcode, arg, at) in enumerate(pickletools.genops(cast(IO[bytes], Cursor(span)))):
        if count == _MAX_OPCODES:
            span.fail("more objects than a file of weights has", at or 0)
        if opcode.name == "STOP":
            return machine.stack.pop()
        refusal = machine.step(opcode.name, arg)
        if refusal:
            span.fail(f"refused: {refusal}; loading it with pickle could run code", at or 0)
    raise AssertionError("genops ends with STOP or raises")


class _Machine:
    """The stack machine of pickle, which only describes."""

    def __init__(self) -> None:
        self.stack: list[Any] = []
        self.marks: list[int] = []
        self.memo: dict[int, Any] = {}

    def step(self, name: str, arg: Any) -> str | None:
        """Follow one opcode; returns why it is refused, if it is."""
        stack = self.stack
        match name:
            case "PROTO" | "FRAME":
                pass
            case "MARK":
                self.marks.append(len(stack))
            case _ if name in _VALUES:
                stack.append(arg)
            case _ if name in _CONSTANTS:
                stack.append(_CONSTANTS[name])
            case _ if name in _TUPLES:
                stack[-_TUPLES[name] :] = [tuple(stack[-_TUPLES[name] :])]
            case "TUPLE":
                stack.append(tuple(self.since_mark()))
            case "BINPUT" | "LONG_BINPUT":
                self.memo[arg] = stack[-1]
            case "MEMOIZE":
                self.memo[len(self.memo)] = stack[-1]
            case "BINGET" | "LONG_BINGET":
                stack.append(self.memo[arg])
            case _:
                return self.build(name, arg)
        return None

    def build(self, name: str, arg: Any) -> str | None:
        """Follow an opcode that makes or fills a list, a dictionary or an object; returns why it is refused."""
        stack = self.stack
        match name:
            case "EMPTY_DICT":
                stack.append({})
            case "EMPTY_LIST":
                stack.append([])
            case "APPEND" | "APPENDS":
                items = self.since_mark() if name == "APPENDS" else [stack.pop()]
                stack[-1].extend(items)
            case "SETITEM" | "SETITEMS":
                items = self.since_mark() if name == "SETITEMS" else [stack.pop(-2), stack.pop()]
                _set(stack[-1], items)
            case "GLOBAL" | "STACK_GLOBAL":
                path = arg if name == "GLOBAL" else f"{stack.pop(-2)} {stack.pop()}"
                if path not in _KNOWN:
                    return f"it refers to {path[:100]!r}"
                stack.append(_Name(path.partition(" ")[2]))
            case "REDUCE":
                args = stack.pop()
                stack.append(_made(stack.pop(), args))
            case "BUILD":
                state = stack.pop()
                stack[-1].state = state
            case _:
                return f"it uses the opcode {name}"
        return None

    def since_mark(self) -> list[Any]:
        """Take what came after the last mark."""
        start = self.marks.pop()
        found = self.stack[start:]
        del self.stack[start:]
        return found


def _set(target: object, items: list[Any]) -> None:
    """Put keys and values in turn into a dictionary; its keys become text."""
    if not isinstance(target, dict):
        raise TypeError("entries of something that is no dictionary")
    for key, value in zip(items[::2], items[1::2], strict=True):
        if not isinstance(key, str | bytes | int):
            raise TypeError(f"a key of type {type(key).__name__}")
        target[key.decode("latin1") if isinstance(key, bytes) else str(key)] = value


def _made(function: object, args: object) -> Any:
    """What calling the function would describe."""
    match function, args:
        case _Name("_reconstruct"), (_, _, _):
            return _Array()
        case _Name("scalar"), (dtype, values):
            return _Array((1, (), dtype, False, values))
        case _Name("dtype"), (code, *_):
            return _Dtype(code)
        case _Name("encode"), (str() as text, "latin1"):
            return text  # becomes bytes where it holds the values of an array
        case _Name("bytes"), ():
            return b""
        case _Name("OrderedDict"), ():
            return {}
    raise TypeError("an unusual call")


class _Flattener:
    """Arrays by name from what a pickle describes, with a limit on names: few bytes can describe endless nesting."""

    def __init__(self, span: Span) -> None:
        self.span = span
        self.room = (1 << 20) + 4 * len(span)
        self.arrays: dict[int, np.ndarray | None] = {}  # by description, as names may share one
        self.tensors: dict[str, np.ndarray] = {}
        self.skipped: list[str] = []

    def flatten(self, value: Any) -> tuple[dict[str, np.ndarray], list[str]]:
        if isinstance(value, _Array):  # numpy.save wraps a dictionary in an array of one object
            shape, code, _, values = self._parts(value)
            if shape == () and code == "O" and isinstance(values, list) and len(values) == 1:
                value = values[0]
        if not isinstance(value, dict):
            self.span.fail("no dictionary of arrays by name")
        self._add(value, "", 0)
        return self.tensors, self.skipped

    def _add(self, value: Any, name: str, depth: int) -> None:
        self.room -= len(name) + _NAME_COST
        if self.room < 0 or depth > _MAX_DEPTH:
            self.span.fail("more names, or more deeply nested, than a file of weights has")
        if isinstance(value, dict | list | tuple):
            for key, inner in value.items() if isinstance(value, dict) else enumerate(value):
                self._add(inner, f"{name}/{key}" if name else str(key), depth + 1)
            return
        array = self._array(value, name) if isinstance(value, _Array) else None
        if array is None:
            self.skipped.append(name)
        else:
            self.tensors[name] = array

    def _array(self, described: _Array, name: str) -> np.ndarray | None:
        """The array, or None where it holds no numbers."""
        if id(described) not in self.arrays:
            array = None
            shape, code, fortran, values = self._parts(described)
            if NUMBERS.fullmatch(code):
                content = self._bytes(values, name)
                self.room -= len(content)
                flat = raw_values(content, code, self.span, name)
                array = native(ordered(flat, shape, fortran, self.span, name))
            self.arrays[id(described)] = array
        return self.arrays[id(described)]

    def _bytes(self, values: object, name: str) -> bytes:
        """The values of an array; Python 2 and protocol 2 keep them as text, one character for each byte."""
        try:
            values = values.encode("latin1") if isinstance(values, str) else values
        except UnicodeEncodeError:
            values = None
        if not isinstance(values, bytes):
            self.span.fail(f"the values of {name} are no bytes")
        return values

    def _parts(self, described: _Array) -> tuple[tuple[int, ...], str, bool, Any]:
        """Shape, type ("<f4" or "O"), whether the first axis changes fastest, and values."""
        match described.state:
            case (_, tuple() as shape, _Dtype(str() as code, (_, str() as order, *_)), fortran, values):
                if all(isinstance(size, int) for size in shape):
                    return shape, "O" if code[:1] == "O" else order + code, bool(fortran), values
        self.span.fail("an array is not described as numpy does")
