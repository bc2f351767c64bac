"""Reading YAML into validated models; errors name file, key, value and what is allowed."""

import difflib
from pathlib import Path
from typing import Any, ClassVar, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError
from ruamel.yaml import YAML
from ruamel.yaml.constructor import DuplicateKeyError
from ruamel.yaml.error import MarkedYAMLError, YAMLError

from ofq.console import printable
from ofq.errors import UserError


class Strict(BaseModel):
    """Base of every config model: immutable, and unknown keys are errors."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    cosmetic: ClassVar[frozenset[str]] = frozenset()
    """Keys that decide no number of a run, and so are no part of its identity."""

    def payload(self, *, brief: bool) -> dict[str, Any]:
        """What decides numbers, as plain data; if brief, without what is at its default."""
        return self.model_dump(exclude=set(self.cosmetic), exclude_defaults=brief)


Model = TypeVar("Model", bound=BaseModel)


def read_yaml(path: Path) -> dict[str, Any]:
    """Parse a YAML file (1.2, so ``1e-3`` is a number) that holds one mapping.

    Raises:
        UserError: The file is missing, isn't YAML, gives a key twice, or isn't a mapping.
    """
    try:
        data = YAML(typ="safe", pure=True).load(path)
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}") from None
    except DuplicateKeyError as error:
        problem = str(error.problem).split(" with value")[0]
        raise UserError(f"{path}:{_line(error)}: {problem}; give each key once") from None
    except MarkedYAMLError as error:
        raise UserError(f"{path}:{_line(error)}: not valid YAML: {error.problem}") from None
    except (YAMLError, ValueError, TypeError, LookupError, OverflowError, RecursionError) as error:
        # ruamel lets pass what Python says of dates, numbers, tags and keys that can't be made
        raise UserError(f"{path}: not valid YAML: {printable(error)}") from None
    if not isinstance(data, dict):
        raise UserError(f"{path}: expected a mapping of keys to values, found {_kind(data)}")
    return data


def parse(model: type[Model], data: Any, source: str) -> Model:
    """Validate data as a config model.

    Args:
        model: The config model.
        data: What the file gave.
        source: Where it stood (file, and key if it is part of one), for the errors.

    Raises:
        UserError: One line per mistake.
    """
    try:
        return model.model_validate(data)
    except ValidationError as error:
        lines = [f"{source}: {_explain(model, dict(e))}" for e in error.errors()]
        raise UserError("\n".join(lines)) from None


def merged(values: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """Values with changes, which win; where both have a mapping, it is merged in the same way."""
    both = dict(values)
    for key, change in changes.items():
        old = both.get(key)
        nested = isinstance(old, dict) and isinstance(change, dict)
        both[key] = merged(old, change) if nested else change  # type: ignore[arg-type]
    return both


def suggest(given: str, allowed: list[str]) -> str:
    """Say what is allowed, nearest first where the given word looks like a slip."""
    close = difflib.get_close_matches(given, allowed, n=1)
    hint = f"did you mean '{close[0]}'? " if close else ""
    return f"{hint}allowed: {', '.join(allowed)}" if allowed else "none is defined"


def _line(error: MarkedYAMLError) -> int:
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
    return f"{where} is {error['input']!r}: {message}"


def _keys_at(model: type[BaseModel], loc: tuple[str | int, ...]) -> list[str]:
    """The keys of the model that stands at a location, found through the fields' annotations."""
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
