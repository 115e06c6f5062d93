"""Dictionaries of arrays from pickles, without running anything in the pickle.

Python's unpickler calls whatever the file names, and numpy's arrays trust the sizes that it states. Here the opcodes
are read as a description: a few names are understood, nothing is called, and arrays are made from checked bytes. What a
program keeps beside its weights (scores, arguments, loggers, an optimiser) stays an `Opaque` and is left out. An
unpickler with a list of allowed names would not keep these guarantees (docs/log.md).
Opcodes: `Lib/pickletools.py`; state of an array: `numpy.ndarray.__reduce__`.
"""

from __future__ import annotations

import pickletools
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import IO, Any, cast

import numpy as np

from degrid.checkpoints.readers.archives import Stream
from degrid.checkpoints.readers.values import NUMBERS, native, ordered, raw_values
from degrid.protobuf import Span
from degrid.types import ConversionError

_MIN_OPCODES, _BYTES_PER_OPCODE = 300_000, 16  # an array takes about 40, and each may take a hundred bytes of memory
_MAX_DEPTH = 8
_NAME_COST = 100  # bytes that an entry takes besides its name

_VALUES = frozenset(
    [
        *("INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT"),
        *("STRING", "BINSTRING", "SHORT_BINSTRING", "UNICODE", "BINUNICODE", "BINUNICODE8", "SHORT_BINUNICODE"),
        *("BINBYTES", "BINBYTES8", "SHORT_BINBYTES", "BYTEARRAY8"),
    ]
)
_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False, "EMPTY_TUPLE": ()}
_TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}


@dataclass(frozen=True)
class Name:
    """A function or class that the pickle names, such as "collections OrderedDict"."""

    name: str


@dataclass
class Opaque:
    """An object that is not made: what would be called, with which arguments, and the state it would be given."""

    name: str
    args: Any = ()
    state: Any = None


@dataclass
class _Dtype:
    """code: "f4"; state: version, byte order, and more."""

    code: object
    state: object = None


@dataclass
class Array:
    """An array or scalar of numpy as the pickle describes it.

    state: version, shape, dtype, Fortran order, values. scalar: a number of numpy's, no array.
    """

    state: object = None
    scalar: bool = False


_ENCODE = Name("_codecs encode")
_LONG = 1 << 12  # bytes of text from which on NumPy reads them faster
_TEXT_CHUNK = 1 << 17  # bytes; the arrays for one stay in the processor's cache

Made = Callable[[str, tuple[Any, ...]], Any]
"""(name, arguments) -> what calling it would describe; None where it is not understood."""


def read_pickle(span: Span) -> tuple[dict[str, np.ndarray], list[str]]:
    """The arrays of a pickled dictionary by name, and the names of entries that hold no numbers.

    Dictionaries and lists inside are flattened: {"conv1": {"weights": w}} gives "conv1/weights", {"fc": [w, b]} gives
    "fc/0" and "fc/1". The arrays view the bytes in the pickle's strings.

    Raises:
        ConversionError: no dictionary, or damaged.
    """
    described, _ = describe(span, len(span))
    if isinstance(described, Array):  # numpy.save wraps a dictionary in an array of one object
        shape, code, _, values = parts_of(described, span)
        if shape == () and code == "O" and isinstance(values, list) and len(values) == 1:
            described = values[0]
    if isinstance(described, Opaque):
        span.fail(
            f"refused: it refers to {described.name[:100]!r}, and loading it with pickle could run code; expected a "
            "dictionary of arrays by name"
        )
    if not isinstance(described, dict):
        span.fail("no dictionary of arrays by name")
    return Flattener(span, len(span), "/").flatten(described)


def describe(
    span: Span, size: int, made: Made = lambda name, args: None, persistent: Callable[[Any], Any] = Opaque
) -> tuple[Any, int]:
    """What a pickle describes: dicts, lists, tuples, plain values, Array, Opaque, and what `made` gives.

    Args:
        span: begins with the pickle.
        size: of the whole file in bytes, which limits how many objects it may describe.
        made: understands further names than those of numpy.
        persistent: from a persistent id to what it stands for.
    Returns:
        The description, and the number of bytes that the pickle takes.
    Raises:
        ConversionError: damaged, or more objects than a file of weights has.
    """
    stream, machine = Stream(span), _Machine(made, persistent)
    opcodes = pickletools.genops(cast(IO[bytes], stream))
    try:
        for _ in range(max(_MIN_OPCODES, size // _BYTES_PER_OPCODE)):
            if machine.stack and machine.stack[-1] == _ENCODE and (values := _bytes_in_text(stream)) is not None:
                machine.stack.append(values)
                continue
            opcode, arg, _ = next(opcodes)
            if opcode.name == "STOP":
                return machine.stack.pop(), stream.at
            machine.step(opcode.name, arg)
        span.fail("more objects than a file of weights has", stream.at)
    except ConversionError:
        raise
    except Exception as error:  # malformed opcodes raise exceptions of many types
        raise ConversionError(f"{span.file}: a damaged pickle at byte {span.offset} ({error})") from error


def _bytes_in_text(stream: Stream) -> memoryview | None:
    """The bytes that protocol 2 keeps as long text, one character for each, without making Python's text of them.

    Returns:
        None, with nothing read, where no long text is next or it holds other characters; pickletools then reads it.
    """
    head = bytes(stream.span.data[stream.at : stream.at + 5])
    length = int.from_bytes(head[1:], "little")
    data = stream.span.data[stream.at + 5 : stream.at + 5 + length]
    if head[:1] != b"X" or len(data) != length or length < _LONG:
        return None
    source, values = np.frombuffer(data, np.uint8), np.empty(_TEXT_CHUNK, np.uint8)
    out, start, done = np.empty(length, np.uint8), 0, 0
    while start < length:
        end = min(start + _TEXT_CHUNK, length)
        text = source[start : end - int(source[end - 1] >= 0xC0)]  # a chunk ends where a character ends
        size = len(text)
        # UTF-8 of characters below 256: 0xC2 or 0xC3, a second byte behind each of them and nowhere else, and ASCII.
        first, second = (text & 0xFE) == 0xC2, text.view(np.int8) < -0x40
        kept = np.flatnonzero(text < 0xC0)
        if not size or second[0] or np.count_nonzero(first) + len(kept) != size:
            return None
        if first[-1] or not np.array_equal(first[:-1], second[1:]):
            return None
        values[0] = text[0]
        np.bitwise_or(text[1:], (text[:-1] == 0xC3).view(np.uint8) * np.uint8(0x40), out=values[1:size])
        np.take(values, kept, mode="clip", out=out[done : done + len(kept)])
        start, done = start + size, done + len(kept)
    stream.at += 5 + length
    return out[:done].data


@dataclass
class _Machine:
    """The stack machine of pickle, which only describes."""

    made: Made
    persistent: Callable[[Any], Any]
    stack: list[Any] = field(default_factory=list)
    marks: list[int] = field(default_factory=list)
    memo: dict[int, Any] = field(default_factory=dict)

    def step(self, name: str, arg: Any) -> None:
        """Follow one opcode."""
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
            case "BINPUT" | "LONG_BINPUT" | "PUT":
                self.memo[arg] = stack[-1]
            case "MEMOIZE":
                self.memo[len(self.memo)] = stack[-1]
            case "BINGET" | "LONG_BINGET" | "GET":
                stack.append(self.memo[arg])
            case "POP":
                stack.pop()
            case "POP_MARK":
                self.since_mark()
            case "BINPERSID" | "PERSID":
                stack.append(self.persistent(stack.pop() if name == "BINPERSID" else arg))
            case _:
                self.build(name, arg)

    def build(self, name: str, arg: Any) -> None:
        """Follow an opcode that makes or fills a list, a dictionary or an object."""
        stack = self.stack
        match name:
            case "EMPTY_DICT":
                stack.append({})
            case "EMPTY_LIST":
                stack.append([])
            case "LIST":
                stack.append(self.since_mark())
            case "DICT":
                items = self.since_mark()
                stack.append({})
                _set(stack[-1], items)
            case "APPEND" | "APPENDS":
                items = self.since_mark() if name == "APPENDS" else [stack.pop()]
                if isinstance(stack[-1], list):
                    stack[-1].extend(items)
            case "SETITEM" | "SETITEMS":
                items = self.since_mark() if name == "SETITEMS" else [stack.pop(-2), stack.pop()]
                _set(stack[-1], items)
            case "BUILD":
                state = stack.pop()
                if isinstance(stack[-1], Array | Opaque | _Dtype):  # other attributes are those of dictionaries
                    stack[-1].state = state
            case _:
                self.make(name, arg)

    def make(self, name: str, arg: Any) -> None:
        """Follow an opcode that would call something, or that makes a set."""
        stack = self.stack
        match name:
            case "GLOBAL":
                stack.append(Name(arg))
            case "STACK_GLOBAL":
                stack[-2:] = [Name(" ".join(stack[-2:]))]
            case "REDUCE" | "NEWOBJ":
                stack[-2:] = [self.called(*stack[-2:])]
            case "NEWOBJ_EX":
                stack[-3:] = [self.called(*stack[-3:-1])]
            case "INST":
                stack.append(self.called(Name(arg), tuple(self.since_mark())))
            case "OBJ":
                function, *args = self.since_mark()
                stack.append(self.called(function, tuple(args)))
            case "EMPTY_SET":
                stack.append(Opaque("builtins set"))
            case "FROZENSET" | "ADDITEMS":
                self.since_mark()
                stack.extend([Opaque("builtins frozenset")] if name == "FROZENSET" else [])
            case _:
                raise ValueError(f"the opcode {name}")

    def called(self, function: object, args: object) -> Any:
        """What calling a name would describe; anything else is opaque."""
        name = function.name if isinstance(function, Name) else type(function).__name__
        if not isinstance(function, Name) or not isinstance(args, tuple):
            return Opaque(name)
        found = _made(name, args)
        if found is None:
            found = self.made(name, args)
        return Opaque(name, args) if found is None else found

    def since_mark(self) -> list[Any]:
        """Take what came after the last mark."""
        start = self.marks.pop()
        found = self.stack[start:]
        del self.stack[start:]
        return found


def _set(target: object, items: list[Any]) -> None:
    """Put keys and values in turn into a dictionary; its keys become text, and others than text and numbers go."""
    for key, value in zip(items[::2], items[1::2], strict=True):
        if isinstance(target, dict) and isinstance(key, str | bytes | int):
            target[key.decode("latin1") if isinstance(key, bytes) else str(key)] = value


def _made(name: str, args: tuple[Any, ...]) -> Any:
    """What calling a function of numpy, or one that makes a dictionary, would describe; None for another."""
    match name.replace("numpy._core.", "numpy.core."), args:
        case "numpy.core.multiarray _reconstruct", (_, _, _):
            return Array()
        case "numpy.core.multiarray scalar", (dtype, values):
            return Array((1, (), dtype, False, values), scalar=True)
        case "numpy.core.numeric _frombuffer", (values, dtype, shape, order):  # protocol 5
            return Array((1, shape, dtype, order == "F", values))
        case "numpy dtype", (code, *_):
            return _Dtype(code)
        case _ENCODE.name, (str() | memoryview() as text, "latin1"):
            return text  # becomes bytes where it holds the values of an array
        case (("__builtin__ bytes" | "builtins bytes"), ()):
            return b""
        case (("collections OrderedDict" | "collections defaultdict" | "__builtin__ dict" | "builtins dict"), _):
            return _dictionary(args[0] if name == "collections OrderedDict" and args else [])
    return None


def _dictionary(pairs: object) -> dict[str, Any]:
    """An OrderedDict as Python 2 wrote it, of pairs."""
    found: dict[str, Any] = {}
    for pair in pairs if isinstance(pairs, list) else []:
        if isinstance(pair, list | tuple) and len(pair) == 2:
            _set(found, list(pair))
    return found


def parts_of(described: Array, where: Span) -> tuple[tuple[int, ...], str, bool, Any]:
    """Shape, type ("<f4" or "O"), whether the first axis changes fastest, and values.

    Raises:
        ConversionError: described in another way than numpy's.
    """
    match described.state:
        case (_, tuple() as shape, _Dtype(str() as code, (_, str() as order, *_)), fortran, values):
            if all(isinstance(size, int) for size in shape):
                return shape, "O" if code[:1] == "O" else order + code, bool(fortran), values
    where.fail("an array is not described as numpy does")


class Flattener:
    """Arrays by name from what a pickle describes, with a limit on names: few bytes can describe endless nesting.

    Args:
        span: for messages.
        size: of the file in bytes.
        separator: between the keys of dictionaries in one another.
        array: makes an array of other descriptions than numpy's; None where it holds no numbers.
    """

    def __init__(
        self, span: Span, size: int, separator: str, array: Callable[[Any, str], np.ndarray | None] | None = None
    ) -> None:
        self.span, self.separator, self.other = span, separator, array
        self.room = (1 << 20) + 4 * size
        self.arrays: dict[int, np.ndarray | None] = {}  # by description, as names may share one
        self.tensors: dict[str, np.ndarray] = {}
        self.skipped: list[str] = []

    def flatten(self, described: dict[str, Any]) -> tuple[dict[str, np.ndarray], list[str]]:
        """Arrays by name, and the names of entries that hold no numbers.

        Raises:
            ConversionError: an array that is damaged, or an absurd number of names.
        """
        self._add(described, "", 0)
        return self.tensors, self.skipped

    def _add(self, value: Any, name: str, depth: int) -> None:
        self.room -= len(name) + _NAME_COST
        if self.room < 0 or depth > _MAX_DEPTH:
            self.span.fail("more names, or more deeply nested, than a file of weights has")
        if isinstance(value, dict | list | tuple):
            for key, inner in value.items() if isinstance(value, dict) else enumerate(value):
                self._add(inner, f"{name}{self.separator}{key}" if name else str(key), depth + 1)
            return
        array = self._array(value, name)
        if array is None:
            self.skipped.append(name)
        else:
            self.tensors[name] = array

    def _array(self, described: Any, name: str) -> np.ndarray | None:
        """The array, or None where it holds no numbers."""
        if not isinstance(described, Array):
            return self.other(described, name) if self.other else None
        if id(described) not in self.arrays:
            array = None
            shape, code, fortran, values = parts_of(described, self.span)
            if NUMBERS.fullmatch(code):
                content = self._bytes(values, name)
                self.room -= len(content)
                flat = raw_values(content, code, self.span, name)
                array = native(ordered(flat, shape, fortran, self.span, name))
            self.arrays[id(described)] = array
        return self.arrays[id(described)]

    def _bytes(self, values: object, name: str) -> memoryview:
        """The values of an array; Python 2 and protocol 2 keep them as text, one character for each byte."""
        try:
            values = values.encode("latin1") if isinstance(values, str) else values
        except UnicodeEncodeError:
            values = None
        if not isinstance(values, bytes | bytearray | memoryview):
            self.span.fail(f"the values of {name} are no bytes")
        return memoryview(values)
