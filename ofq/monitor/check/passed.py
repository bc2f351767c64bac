"""Record of what has passed the checks, so that it isn't constructed again."""

import hashlib
import json
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from ofq.atomic import write_json
from ofq.config.construction import Construction
from ofq.errors import UserError
from ofq.runs.provenance import code_sha256
from ofq.runs.record import read_object

FILE = "checks.json"
"""Name of the record in the results folder."""

_MOST = 5000  # keys kept, the newest ones


class Passed:
    """Keys of the constructions that have passed; mistakes aren't kept.

    A key is the SHA-256 of a model's and a quantization's config, of all code that decides numbers,
    package versions included, and of the user's own modules.

    Args:
        results: The results folder, which need not exist.
    """

    def __init__(self, results: Path) -> None:
        self._path = results / FILE
        self._keys = _read(self._path)
        self._code: dict[tuple[str, ...], str] = {}

    def covers(self, wanted: Construction) -> bool:
        """Return whether all of a construction has passed."""
        return all(key in self._keys for key in self._keys_of(wanted))

    def add(self, constructions: list[Construction]) -> None:
        """Add constructions and write the record; do nothing where it can't be written."""
        added = [key for wanted in constructions for key in self._keys_of(wanted)]
        kept = [key for key in self._keys if key not in added]
        self._keys = dict.fromkeys([*kept, *added][-_MOST:])
        with suppress(OSError):
            self._path.parent.mkdir(parents=True, exist_ok=True)
            write_json(self._path, {"passed": [*self._keys]})

    def _keys_of(self, wanted: Construction) -> Iterator[str]:
        yield self._key(wanted, None, ())
        for way in wanted.ways:
            own = filter(None, [way.quantization.module])
            yield self._key(wanted, way.payload(), tuple(own))

    def _key(self, wanted: Construction, way: object, own: tuple[str, ...]) -> str:
        modules = (*wanted.modules, *own)
        if modules not in self._code:
            self._code[modules] = code_sha256(modules)
        text = json.dumps([wanted.payload(), way, self._code[modules]], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]


def _read(path: Path) -> dict[str, None]:
    """Return the keys of a record; none if it isn't there or is damaged."""
    try:
        keys = read_object(path).get("passed")
    except (OSError, UserError):
        return {}
    return dict.fromkeys(map(str, keys)) if isinstance(keys, list) else {}
