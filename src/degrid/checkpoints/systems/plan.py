"""The seam for checkpoints of other programs: a system says which files are its own, and where each tensor goes."""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from degrid.types import ConversionError, LabelSpace, UserError

Tensors = Mapping[str, np.ndarray]

FILE_NAME = "name of the file"
"""Where `System.plan_beside` finds it."""


@dataclass(frozen=True)
class Drop:
    """A tensor that is left out on purpose, and why."""

    reason: str


Rule = Callable[[str, np.ndarray], "dict[str, np.ndarray] | Drop | None"]
"""Takes a tensor of the file; gives our names with their values, a reason to leave it out, or None: unknown."""


@dataclass
class Plan:
    """How the tensors of a file become a network's.

    Attributes:
        model: the network's settings, fields of `degrid.config.ModelConfig`.
        kind: "model", or "encoder" for ImageNet weights, which have no segmentation head.
        tensors: values by our names. origins: the file's names by ours.
        dropped: reasons by the file's names. unexpected: the file's names that no rule knows.
        notes: what the user should know.
        labels: the classes, where the file names them.
        assumed: fields of `model` that the file does not say and that networks of this program differ in.
        otherwise: the options that set them for other networks of the program.
        fixed: fields of `model` that all networks of the program share, so that other values are refused.
    """

    model: dict[str, Any]
    kind: str = "model"
    tensors: dict[str, np.ndarray] = field(default_factory=dict)
    origins: dict[str, str] = field(default_factory=dict)
    dropped: dict[str, str] = field(default_factory=dict)
    unexpected: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    labels: LabelSpace | None = None
    assumed: tuple[str, ...] = ()
    otherwise: str = ""
    fixed: tuple[str, ...] = ()

    def assumption(self, model: Mapping[str, Any], given: Collection[str]) -> list[str]:
        """What to say of the settings that the file does not say: one sentence, or none where the user gave them all.

        Args:
            model: the network's settings, with those of the user.
            given: the fields that the user gave.
        """
        left = [name for name in self.assumed if name not in given]
        if not left:
            return []
        values = " ".join(f"{name}={_written(model[name])}" for name in left)
        return [f"the file does not say these settings, which are assumed: {values} ({self.otherwise}, settings=...)"]

    def fill(self, tensors: Tensors, *rules: Rule) -> Plan:
        """Send every tensor where the first rule that knows it says; returns the plan itself."""
        for name, value in tensors.items():
            found = next((result for rule in rules if (result := rule(name, value)) is not None), None)
            if found is None:
                self.unexpected.append(name)
            elif isinstance(found, Drop):
                self.dropped[name] = found.reason
            else:
                self.tensors |= found
                self.origins |= dict.fromkeys(found, name)
        return self

    def called(self, names: Mapping[str, str]) -> Plan:
        """Give the file's tensors the names that they have in it; returns the plan itself.

        Args:
            names: them, by those under which the plan was made.
        """
        self.origins = {ours: names[name] for ours, name in self.origins.items()}
        self.dropped = {names[name]: reason for name, reason in self.dropped.items()}
        self.unexpected = [names[name] for name in self.unexpected]
        return self


def _written(value: object) -> str:
    """A setting as in --set."""
    return ",".join(map(str, value)) if isinstance(value, list | tuple) else str(value).lower()


class System(ABC):
    """A program whose checkpoints can be converted. Derive a class, and add a row to `table.SYSTEMS` or name it
    "module:Class".

    Attributes:
        title: the program, in words.
        aliases: names of programs that write the same files.
        marks: regular expressions of names that only this system's files have all of, the most telling first.
    """

    title: str
    aliases: tuple[str, ...] = ()
    marks: tuple[str, ...] = ()

    def recognise(self, tensors: Tensors) -> str | None:
        """The name of a tensor that only this system's files have, by default one of `marks`; None for other files."""
        found = [first_match(tensors, mark) for mark in self.marks]
        return found[0] if found and all(found) else None

    @abstractmethod
    def plan(self, tensors: Tensors) -> Plan:
        """The network that the file holds, and where its tensors go.

        Raises:
            ConversionError: it is a network that degrid does not have.
        """

    def plan_beside(self, tensors: Tensors, config: Mapping[str, Any]) -> Plan:
        """As `plan`, for a program that writes its settings beside the weights.

        Args:
            tensors: the file's.
            config: the content of config.json in the file's folder, what `Contents.settings` found in the file, and
                its name under FILE_NAME.
        """
        return self.plan(tensors)


class ConfiguredSystem(System):
    """A program that writes its settings beside the weights, or into the file: it derives `plan_beside`."""

    def plan(self, tensors: Tensors) -> Plan:
        """See `System`; without any settings."""
        return self.plan_beside(tensors, {})

    @abstractmethod
    def plan_beside(self, tensors: Tensors, config: Mapping[str, Any]) -> Plan:
        """See `System`."""


def planned(system: System, tensors: Tensors, config: Mapping[str, Any], file: object) -> Plan:
    """As `System.plan_beside`, of tensors and settings that may have any shape and type.

    Raises:
        ConversionError: also where a name, a shape or a setting is not as in the program's networks.
    """
    try:
        return system.plan_beside(tensors, config)
    except UserError:  # a ValueError, too, with a message for people
        raise
    except (LookupError, TypeError, ValueError) as error:
        raise ConversionError(
            f"{file} has the names of {system.title}, but another tensor or setting than its networks have "
            f"({type(error).__name__}: {error}); degrid cannot convert this variant"
        ) from error


def first_match(tensors: Tensors, pattern: str) -> str | None:
    """The first name that matches a regular expression from its beginning to its end."""
    return next((name for name in tensors if re.fullmatch(pattern, name)), None)
