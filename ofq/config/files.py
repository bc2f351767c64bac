"""Read YAML into validated models; errors name file, key, value and what is allowed."""

import difflib
import re
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError, model_validator
from yaml.constructor import ConstructorError
from yaml.events import AliasEvent
from yaml.nodes import MappingNode, Node

from ofq.console import printable
from ofq.errors import UserError
from ofq.values import DEEPEST, INTEGER_BITS, TooMuch, check_values

LARGEST_YAML = 2**18
"""Largest size of a YAML file, in bytes."""

_MOST_VALUES = 50_000  # in a YAML file, those that aliases repeat included
_SHOWN = 200  # letters of a wrong value


class Strict(BaseModel):
    """Base of every config model: immutable, and unknown keys are errors."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)
    cosmetic: ClassVar[frozenset[str]] = frozenset()
    """Keys that don't affect a run's results, and so are no part of its identity."""
    older: ClassVar[dict[str, str]] = {}
    """Present names of keys by their older names, which files may still use."""

    @model_validator(mode="before")
    @classmethod
    def _older_keys_are_known(cls, data: Any) -> Any:
        return renamed(data, cls.older) if isinstance(data, dict) else data

    def payload(self, *, brief: bool) -> dict[str, Any]:
        """Return the keys that affect results, as plain data; if brief, without defaults."""
        return self.model_dump(exclude=set(self.cosmetic), exclude_defaults=brief)


def renamed(values: dict[Any, Any], names: dict[str, str]) -> dict[Any, Any]:
    """Return a mapping with older key names replaced by present ones.

    Args:
        values: Values by key.
        names: The present names of keys, by their older ones.

    Raises:
        ValueError: A key is given by both of its names.
    """
    for old, new in names.items():
        if old in values and new in values:
            raise ValueError(f"'{old}' is the older name of '{new}'; give one of them")
    if names.keys().isdisjoint(values):
        return values
    return {names.get(key, key): value for key, value in values.items()}


Model = TypeVar("Model", bound=BaseModel)


class _Mapping(dict[Any, Any]):
    """Mapping of a file, with the line numbers of its keys, from 1."""

    lines: dict[Any, int]


class _Loader(yaml.SafeLoader):
    """Loader of plain YAML 1.2 data (``1e-3`` is a number, ``on`` and ``no`` are words).

    Refuses keys that are given twice, and documents that are deep, or that grow when their aliases
    are followed.
    """

    yaml_implicit_resolvers: ClassVar[dict[Any, Any]] = {}

    def __init__(self, content: bytes) -> None:
        super().__init__(content)
        self._depth = self._values = 0
        self._held: dict[int, int] = {}  # values in an anchored node, by the node's id

    def compose_node(self, parent: Node | None, index: Any) -> Any:
        is_alias = self.check_event(AliasEvent)
        before = self._values
        self._depth += 1
        self._values += 1
        if self._depth > DEEPEST:
            raise TooMuch(f"nested deeper than {DEEPEST} levels")
        node = super().compose_node(parent, index)
        if is_alias:
            if id(node) not in self._held:
                raise TooMuch("an alias within what it stands for")
            self._values += self._held[id(node)]
        if self._values > _MOST_VALUES:
            raise TooMuch(f"more than {_MOST_VALUES:,} values, with those that aliases repeat")
        self._held[id(node)] = self._values - before
        self._depth -= 1
        return node

    def construct_mapping(self, node: Node, deep: bool = False) -> _Mapping:
        """Construct a mapping whose keys are all different."""
        assert isinstance(node, MappingNode)
        lines: dict[Any, int] = {}
        for key_node, _ in node.value:
            if key_node.tag == "tag:yaml.org,2002:merge":
                continue
            key = self.construct_object(key_node, deep=True)
            try:
                known = key in lines
            except TypeError:
                raise ConstructorError(
                    None, None, "a key is a list or a mapping", key_node.start_mark
                ) from None
            if known:
                raise ConstructorError(
                    None, None, f'found duplicate key "{key}"', key_node.start_mark
                )
            lines[key] = key_node.start_mark.line + 1
        mapping = _Mapping(super().construct_mapping(node, deep=True))
        mapping.lines = lines
        return mapping


def _construct_mapping(loader: _Loader, node: Node) -> _Mapping:
    return loader.construct_mapping(node)


_Loader.add_constructor("tag:yaml.org,2002:map", _construct_mapping)
for _tag, _pattern, _first in (
    ("null", r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    ("bool", r"true|True|TRUE|false|False|FALSE", list("tTfF")),
    ("int", r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+", list("-+0123456789")),
    (
        "float",
        r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)",
        list("-+.0123456789"),
    ),
    ("merge", r"<<", ["<"]),
):
    _Loader.add_implicit_resolver(
        f"tag:yaml.org,2002:{_tag}", re.compile(rf"^(?:{_pattern})$"), _first
    )


def _construct_int(loader: _Loader, node: Any) -> int:
    text = loader.construct_scalar(node)
    if len(text) > _SHOWN:
        raise TooMuch(f"an integer of more than {INTEGER_BITS} bits")
    digits = text.lstrip("+-")
    return int(text, 0) if digits[:2] in ("0o", "0x") else int(text)


_Loader.add_constructor("tag:yaml.org,2002:int", _construct_int)


def read_yaml(path: Path) -> dict[str, Any]:
    """Parse a YAML file (1.2, so ``1e-3`` is a number) that holds one mapping.

    Aliases are bounded, so that no file, whoever wrote it, takes long to read.

    Raises:
        UserError: The file is missing, isn't YAML, gives a key twice, isn't a mapping, or is
            larger, deeper or has longer integers than a config can need.
    """
    try:
        data = _bounded_yaml(path)
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}") from None
    except TooMuch as error:
        raise UserError(f"{path}: {error}, which no config needs") from None
    except yaml.MarkedYAMLError as error:
        problem = printable(error.problem)
        if "duplicate key" in problem:
            raise UserError(f"{path}:{_line(error)}: {problem}; give each key once") from None
        raise UserError(f"{path}:{_line(error)}: not valid YAML: {problem}") from None
    except (
        yaml.YAMLError,
        ValueError,
        TypeError,
        LookupError,
        OverflowError,
        RecursionError,
    ) as error:
        # PyYAML doesn't wrap Python's errors on dates, numbers, tags and keys that are invalid
        raise UserError(f"{path}: not valid YAML: {printable(error)}") from None
    if not isinstance(data, dict):
        raise UserError(f"{path}: expected a mapping of keys to values, found {_kind(data)}")
    return data


def _bounded_yaml(path: Path) -> Any:
    with path.open("rb") as file:
        content = file.read(LARGEST_YAML + 1)
    if len(content) > LARGEST_YAML:
        raise TooMuch(f"larger than {LARGEST_YAML // 1024} KiB")
    data = yaml.load(content, Loader=_Loader)
    check_values(data)
    return data


def parse(model: type[Model], data: Any, source: str) -> Model:
    """Validate data as a config model.

    Args:
        model: The config model.
        data: The file's content.
        source: Its origin (file, and key if it is part of one), for the errors.

    Raises:
        UserError: One line per mistake.
    """
    try:
        return model.model_validate(data)
    except ValidationError as error:
        lines = [
            f"{source}: {_explain(model, dict(e))}{_place(data, e['loc'])}" for e in error.errors()
        ]
        raise UserError("\n".join(lines)) from None


def _place(data: Any, location: tuple[str | int, ...]) -> str:
    """Return the line of the innermost key on the way to a mistake, where the file's is known."""
    line = None
    for part in location:
        if isinstance(data, _Mapping):
            line = data.lines.get(part, line)
        try:
            data = data[part]
        except (KeyError, IndexError, TypeError):
            break
    return f" (line {line})" if line else ""


def merged(values: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """Return values updated with changes; nested mappings are merged recursively."""
    both = dict(values)
    for key, change in changes.items():
        old = both.get(key)
        nested = isinstance(old, dict) and isinstance(change, dict)
        both[key] = merged(old, change) if nested else change  # type: ignore[arg-type]
    return both


def suggest(given: str, allowed: list[str]) -> str:
    """Return a hint of the allowed words, the nearest first if the given one looks like a typo."""
    close = difflib.get_close_matches(given, allowed, n=1)
    hint = f"did you mean '{close[0]}'? " if close else ""
    return f"{hint}allowed: {', '.join(allowed)}" if allowed else "none is defined"


def _line(error: yaml.MarkedYAMLError) -> int:
    return error.problem_mark.line + 1 if error.problem_mark else 1


def _kind(data: Any) -> str:
    return "nothing" if data is None else f"a {type(data).__name__}"


def _explain(model: type[BaseModel], error: dict[str, Any]) -> str:
    key = ".".join(str(part) for part in error["loc"] if part != "[key]")
    if error["type"] == "extra_forbidden":
        name = str(error["loc"][-1])
        return f"unknown key '{key}' ({suggest(name, _keys_at(model, error['loc'][:-1]))})"
    if error["type"] == "missing":
        return f"key '{key}' is missing"
    message = error["msg"].removeprefix("Value error, ").removeprefix("Input ")
    if isinstance(error["input"], dict):  # of several keys, which the message names
        return f"key '{key}': {message}" if key else message
    where = f"key '{key}'" if key else "the file"
    return f"{where} is {_shown(error['input'])}: {message}"


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]} ..."


def _keys_at(model: type[BaseModel], loc: tuple[str | int, ...]) -> list[str]:
    """Return the keys of the model at a location, found through the fields' annotations."""
    current: Any = model
    for part in loc:
        current = _step(current, part)
    return sorted(getattr(current, "model_fields", {}))


def _step(annotation: Any, part: str | int) -> Any:
    fields = getattr(annotation, "model_fields", {})
    inner = fields[part].annotation if part in fields else annotation
    if isinstance(inner, type) and issubclass(inner, BaseModel):
        return inner
    models = [a for a in _flatten(inner) if isinstance(a, type) and issubclass(a, BaseModel)]
    return models[0] if models else inner


def _flatten(annotation: Any) -> list[Any]:
    arguments = getattr(annotation, "__args__", ())
    return [annotation] if not arguments else [a for arg in arguments for a in _flatten(arg)]
