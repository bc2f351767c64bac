"""Reader of finished runs, which verifies and validates each file before it is used.

``manifest.json`` holds size and SHA-256 of each final file, and a SHA-256 of these. Runs of earlier
versions have none: their files are verified by the SHA-256 in ``result.json``, and that file by its
agreement with the others.
"""

import errno
import hashlib
import io
import json
import os
import stat
from collections.abc import Callable, Iterator
from dataclasses import fields
from functools import cached_property, lru_cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeVar, get_args

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator

from ofq.atomic import write_json
from ofq.config.published import Difference
from ofq.console import printable
from ofq.errors import UserError

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa
    from numpy.typing import NDArray

Table = Literal[
    "metrics",
    "layers",
    "trajectories",
    "histograms",
    "sign_changes",
    "joint_flips",
    "activations",
    "noise",
]
TABLES: tuple[Table, ...] = get_args(Table)
DESCRIPTION = "run.json"
PROVENANCE = "provenance.json"
WEIGHTS = "model.safetensors"
TRACKER = "tracker.safetensors"
RESULT = "result.json"
CORRECT = "correct.npy"
PACKED = "packed.json"
MANIFEST = "manifest.json"
UNPACKED = "unpacked"

FINAL = (
    DESCRIPTION,
    PROVENANCE,
    RESULT,
    CORRECT,
    PACKED,
    WEIGHTS,
    TRACKER,
    *(f"{table}.parquet" for table in TABLES),
)
"""Names of the files that a finished run's manifest may contain."""

FIRST_EPOCH: dict[Table, int] = {
    "metrics": 0, "layers": 0, "sign_changes": 1, "joint_flips": 1,
    "activations": 1,
}  # fmt: skip
"""First epoch of each table that has rows for every epoch."""

_LARGEST_JSON = 1 << 26
_LARGEST_TABLE = 1 << 28
_MOST_VALUES = 1 << 22  # rows times columns of a table that no hash verifies
_BLOCK = 1 << 20


class Damaged(UserError):
    """Error: a file of a record can't be read, differs from what was written, or is invalid.

    Args:
        path: The file.
        fault: What is wrong with it.

    Attributes:
        file: The file's name.
        fault: What is wrong with it, in one line.
    """

    def __init__(self, path: Path | str, fault: str) -> None:
        path = Path(path)
        self.file = path.name
        self.fault = printable(fault)
        run = "/".join(path.parent.parts[-3:])
        super().__init__(f"{path}: {self.fault}; `ofq doctor {run}` says what to do")


class _Lenient(BaseModel):
    model_config = ConfigDict(strict=True, extra="allow")


class _Exact(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid")


_Sha256 = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
_Count = Annotated[int, Field(ge=0, lt=2**53)]
_Percent = Annotated[float, Field(ge=0, le=100, allow_inf_nan=False)]
_Finite = Annotated[float, Field(allow_inf_nan=False)]


def _final(name: str) -> str:
    if name not in FINAL:
        raise ValueError("no final file of a run")
    return name


_FileName = Annotated[str, AfterValidator(_final)]
_Model = TypeVar("_Model", bound=BaseModel)


class FileFacts(_Exact):
    """Size and SHA-256 of one file."""

    bytes: _Count
    sha256: _Sha256


class _Manifest(_Exact):
    format: Literal[1]
    files: dict[_FileName, FileFacts]
    sha256: _Sha256


class _Result(_Lenient):
    id: str
    primary: Literal["top1", "loss"]
    top1: _Percent | None = None
    loss: _Finite | None = None
    correct: _Count | None = None
    images: Annotated[_Count, Field(ge=1)] | None = None
    epochs: _Count
    steps: _Count
    seconds: Annotated[_Finite, Field(ge=0)]
    sha256: dict[_FileName, _Sha256] | None = None

    @model_validator(mode="after")
    def _agrees(self) -> "_Result":
        if getattr(self, self.primary) is None:
            raise ValueError(f"key '{self.primary}' is missing")
        if self.correct is not None:
            if self.images is None or self.correct > self.images:
                raise ValueError(f"{self.correct} right of {self.images} images")
            if self.top1 != 100 * self.correct / self.images:
                raise ValueError(
                    f"top-1 is {self.top1}, but {self.correct} of {self.images} images are right"
                )
        return self


def _difference(entry: dict[str, Any]) -> dict[str, Any]:
    if entry.keys() != {field.name for field in fields(Difference)}:
        raise ValueError("not a difference of two recipes")
    return entry


class _Comparison(_Lenient):
    differences: list[Annotated[dict[str, Any], AfterValidator(_difference)]]


class _Module(_Lenient):
    name: str


class _Attempt(_Lenient):
    commit: str | None
    diff: str | None
    untracked: list[str]
    module: _Module | None = None
    devices: list[str] | None = None


class _Data(_Lenient):
    fingerprint: str


class _Provenance(_Lenient):
    attempts: Annotated[list[_Attempt], Field(min_length=1)]
    recipe: _Comparison | None = None
    inputs: dict[str, str] | None = None
    data: _Data | None = None
    studies: list[str] | None = None
    methods: list[str] | None = None


class _Time(_Lenient):
    seconds: Annotated[_Finite, Field(ge=0)] | None = None


class _Device(_Lenient):
    devices: list[str] | None = None


class _Begun(_Lenient):
    attempts: list[_Device]
    inputs: dict[str, str] = Field(default_factory=dict)
    data: _Data | None = None


class _Description(_Lenient):
    id: str
    config: dict[str, Any]
    parent: str | None = None
    teacher: str | None = None


class _Sizes(_Exact):
    packed_bytes: Annotated[_Count, Field(ge=1)]
    full_precision_bytes: Annotated[_Count, Field(ge=1)]


class Record:
    """The final files of a finished run.

    Every method raises :class:`Damaged` if a file that it needs can't be read, differs from what
    was written, or is invalid.

    Args:
        folder: The run folder, or its folder of sealed files.
        content: Content of ``result.json``, not yet validated.
        files: Content of the manifest; None if the run has none.

    Attributes:
        content: As given.
        files: As given.
    """

    def __init__(
        self, folder: Path, content: dict[str, Any], files: dict[str, FileFacts] | None
    ) -> None:
        self.folder = folder
        self.content = content
        self.files = files
        hashes = content.get("sha256")
        self._hashes = (
            {name: digest for name, digest in hashes.items() if name in FINAL}
            if isinstance(hashes, dict)
            else None
        )

    @classmethod
    def open(cls, folder: Path) -> "Record | None":
        """Open a run's record; None if the run hasn't finished.

        Raises:
            Damaged: ``result.json`` or the manifest is damaged.
        """
        path = f"{folder}/{RESULT}"  # thousands of paths cost more than what they lead to
        try:
            text = read_bytes(path, _LARGEST_JSON)
        except FileNotFoundError:
            return None
        files = read_manifest(folder)
        if files is not None:
            _verify(path, text, files.get(RESULT))
        content = parse_json(path, text)
        if files is None and "manifest" in content:
            raise Damaged(folder / MANIFEST, "missing")
        return cls(folder, content, files)

    @property
    def names(self) -> list[str]:
        """Names of the final files that are known to belong to the run, in order."""
        if self.files is not None:
            return list(self.files)
        own = (DESCRIPTION, PROVENANCE, RESULT)
        packed = [PACKED] if (self.folder / PACKED).exists() else []
        if self._hashes is not None:
            return [*own, *self._hashes, *packed]
        others = (WEIGHTS, CORRECT, *(f"{table}.parquet" for table in TABLES))
        return [*own, *(name for name in others if (self.folder / name).exists()), *packed]

    def has(self, name: str) -> bool:
        """Return whether the run ended with a file of this name, which may be missing now."""
        if self.files is not None:
            return name in self.files
        if self._hashes is not None and name not in (DESCRIPTION, PROVENANCE, RESULT, PACKED):
            return name in self._hashes
        return (self.folder / name).exists()

    def read(self, name: str) -> bytes:
        """Read a final file and verify the bytes read."""
        path = f"{self.folder}/{name}"
        known = self.files.get(name) if self.files is not None else None
        largest = _LARGEST_TABLE if name.endswith((".parquet", ".npy")) else _LARGEST_JSON
        try:
            text = read_bytes(path, largest if known is None else known.bytes)
        except FileNotFoundError:
            raise Damaged(path, "missing") from None
        if self.files is not None:
            _verify(path, text, known)
        elif self._hashes is not None and name in self._hashes:
            _compare(path, hashlib.sha256(text).hexdigest(), self._hashes[name])
        return text

    def verify(self, name: str) -> None:
        """Verify a file by its hash, in blocks, so that large files need little memory."""
        path = self.folder / name
        expected = self._hashes.get(name) if self._hashes is not None else None
        try:
            with opened(path) as file:
                if self.files is not None:
                    known = self.files.get(name)
                    size = os.fstat(file.fileno()).st_size
                    if known is None:
                        raise Damaged(path, "the manifest doesn't name it")
                    if size != known.bytes:
                        raise Damaged(path, _other_size(size, known.bytes))
                    expected = known.sha256
                if expected is not None:
                    _compare(path, hashlib.file_digest(file, "sha256").hexdigest(), expected)
        except FileNotFoundError:
            raise Damaged(path, "missing") from None

    @cached_property
    def result(self) -> dict[str, Any]:
        """Final numbers, validated: their types, ranges and agreement with each other."""
        _check(_Result, f"{self.folder}/{RESULT}", self.content)
        if self.files is None and (self.folder / "metrics.parquet").exists():
            self._compare_with_last_row()
        return self.content

    @property
    def seconds(self) -> float | None:
        """Seconds that the run took over all its attempts; None if not recorded."""
        return _check(_Time, self.folder / RESULT, self.content).seconds

    def check_places(self) -> None:
        """Refuse a record with missing files; reads none of them.

        Weights and the tracker's history may be missing, which no report needs.
        """
        early = (DESCRIPTION, PROVENANCE) if self.files is None else ()
        unpacked = (self.folder / UNPACKED).exists()
        for name in () if unpacked else self.names:
            path = self.folder / name
            if name not in (WEIGHTS, TRACKER, *early) and not path.exists():
                raise Damaged(path, "missing")

    def description(self) -> dict[str, Any]:
        """Return the content of ``run.json``."""
        return self._json(DESCRIPTION, _Description)

    def provenance(self) -> dict[str, Any]:
        """Return the content of ``provenance.json``."""
        return self._json(PROVENANCE, _Provenance)

    def written_provenance(self) -> dict[str, Any]:
        """Return the content of ``provenance.json``, even if keys that reports need are missing."""
        return self._json(PROVENANCE, _Begun)

    def sizes(self) -> dict[str, int]:
        """Return bytes of the packed file and of full precision; empty if never exported."""
        return self._json(PACKED, _Sizes) if self.has(PACKED) else {}

    def correct(self) -> "NDArray[np.bool_] | None":
        """Return whether the final model is right about each evaluation image, (images,).

        Their number is that of ``result.json``. None if the run has no such file.
        """
        import numpy as np

        path = f"{self.folder}/{CORRECT}"
        if not self.has(CORRECT):
            return None
        images, right = self.content.get("images"), self.content.get("correct")
        if not isinstance(images, int) or not 1 <= images < 2**40:
            raise Damaged(self.folder / RESULT, f"key 'images' is {images!r}")
        text, count = self.read(CORRECT), -(-images // 8)
        if len(text) != len(_npy_header(count)) + count or not text.startswith(_npy_header(count)):
            raise Damaged(path, f"isn't of {images} images, of which {RESULT} tells")
        bits = np.unpackbits(np.frombuffer(text[-count:], np.uint8), count=images).astype(np.bool_)
        if bits.sum() != right:
            fault = f"tells of {bits.sum()} right images, but {RESULT} of {right}"
            raise Damaged(path, fault)
        return bits

    def table(self, table: Table) -> "pa.Table":
        """Return a final table with no row missing; an empty one if the run has none.

        ``metrics`` must exist.
        """
        import pyarrow as pa

        if not self.has(f"{table}.parquet") and table != "metrics":
            return pa.table({})
        rows = self.written_table(table)
        self._check_epochs(table, rows)
        return rows

    def written_table(self, table: Table) -> "pa.Table":
        """Return a final table as it was written, even if rows are missing."""
        name = f"{table}.parquet"
        return _parsed_table(f"{self.folder}/{name}", self.read(name), trusted=self._vouched(name))

    def faults(self) -> Iterator[Damaged]:
        """Yield the first fault of each damaged file, weights included."""
        checks: dict[str, Callable[[], object]] = {
            RESULT: lambda: self.result,
            DESCRIPTION: self.description,
            PROVENANCE: self.provenance,
            CORRECT: self.correct,
            PACKED: self.sizes,
            **{f"{table}.parquet": partial(self.table, table) for table in TABLES},
        }
        missing = [] if self.files is not None else ["metrics.parquet"]
        seen: set[tuple[str, str]] = set()
        for name in dict.fromkeys([*self.names, *missing]):
            try:
                checks.get(name, partial(self.verify, name))()
            except Damaged as fault:
                if (fault.file, fault.fault) not in seen:
                    seen.add((fault.file, fault.fault))
                    yield fault

    def _json(self, name: str, kind: type[BaseModel]) -> dict[str, Any]:
        path = f"{self.folder}/{name}"
        content = parse_json(path, self.read(name))
        _check(kind, path, content)
        return content

    def _vouched(self, name: str) -> bool:
        return self.files is not None or (self._hashes is not None and name in self._hashes)

    def _check_epochs(self, table: Table, rows: "pa.Table") -> None:
        """Refuse a table whose epochs, up to the last one, differ in their number of rows."""
        import numpy as np

        first = FIRST_EPOCH.get(table)
        if first is None:
            return
        path, last = f"{self.folder}/{table}.parquet", self.content.get("epochs")
        try:
            epochs = rows.column("epoch").to_numpy().astype(np.int64, casting="safe")
        except (KeyError, TypeError, ValueError):
            raise Damaged(path, "has no column 'epoch' of whole numbers") from None
        if not isinstance(last, int) or not len(epochs) or epochs.min() < first:
            raise Damaged(path, f"has no rows from epoch {first} on")
        if (end := epochs.max()) != last:
            fault = f"ends at epoch {end}, but {RESULT} tells of {last}"
            raise Damaged(path, fault)
        # else some epoch has no row, and counting could exhaust the memory
        whole = end - first < len(epochs)
        counts = np.bincount(epochs)[first:].tolist() if whole else [0, 1]
        if len(set(counts)) > 1 or (table == "metrics" and counts[0] != 1):
            raise Damaged(path, "rows of some epochs are missing, or stand twice")

    def _compare_with_last_row(self) -> None:
        """Compare ``result.json`` of an early version with the measures of the last epoch."""
        rows = self.table("metrics")
        last = rows.slice(rows.num_rows - 1).to_pylist()[0]
        known = {**last, "steps": last.get("step"), "epochs": last.get("epoch")}
        for key, value in self.content.items():
            if key in known and known[key] != value and value == value:
                fault = f"key '{key}' is {value}, but metrics.parquet ends with {known[key]}"
                raise Damaged(self.folder / RESULT, fault)


def opened(path: Path | str) -> io.BufferedReader:
    """Open a regular file for reading; never blocks on a pipe or device in its place.

    Raises:
        Damaged: It is no regular file, or can't be opened.
        UserError: This user may not read it.
        FileNotFoundError: It doesn't exist.
    """
    return os.fdopen(_descriptor(path)[0], "rb")


def read_bytes(path: Path | str, largest: int) -> bytes:
    """Read a regular file of a bounded size.

    Raises:
        Damaged: It is larger, no regular file, or can't be read.
        UserError: This user may not read it.
        FileNotFoundError: It doesn't exist.
    """
    descriptor, size = _descriptor(path)  # not a file object, which costs as much as reading
    try:
        if size > largest:
            raise Damaged(path, f"holds {size:,} bytes; expected {largest:,} at most")
        text = part = os.read(descriptor, size + 1)
        while part and len(text) <= size:
            part = os.read(descriptor, size + 1)
            text += part
    except OSError as error:
        raise Damaged(path, _unreadable(error)) from None
    finally:
        os.close(descriptor)
    return text


def _descriptor(path: Path | str) -> tuple[int, int]:
    """Open a regular file; return its descriptor and size."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError:
        raise
    except PermissionError as error:
        raise UserError(f"{path}: {error.strerror}; mend its permissions") from None
    except OSError as error:
        raise Damaged(path, _unreadable(error)) from None
    facts = os.fstat(descriptor)
    if not stat.S_ISREG(facts.st_mode):
        os.close(descriptor)
        kind = "a folder" if stat.S_ISDIR(facts.st_mode) else "something else"
        raise Damaged(path, f"is {kind}, not a file")
    return descriptor, facts.st_size


def parse_json(path: Path | str, text: bytes) -> dict[str, Any]:
    """Parse the content of a file as a JSON object.

    Raises:
        Damaged: It isn't one.
    """
    try:
        content = json.loads(text.decode())
    except (ValueError, RecursionError) as error:
        raise Damaged(path, f"not valid JSON ({error})") from None
    if not isinstance(content, dict):
        raise Damaged(path, "not a JSON object")
    return content


def read_object(path: Path | str) -> dict[str, Any]:
    """Read a JSON object from a file that no manifest lists.

    Raises:
        Damaged: It isn't one, or can't be read.
        FileNotFoundError: The file doesn't exist.
    """
    return parse_json(path, read_bytes(path, _LARGEST_JSON))


def check_description(path: Path | str, content: dict[str, Any]) -> None:
    """Validate the content of a ``run.json``.

    Raises:
        Damaged: It is invalid.
    """
    _check(_Description, path, content)


def check_begun(path: Path | str, content: dict[str, Any]) -> None:
    """Validate the content of an unfinished run's ``provenance.json``.

    Raises:
        Damaged: It is invalid.
    """
    _check(_Begun, path, content)


def facts_of(path: Path) -> FileFacts:
    """Return a file's size and SHA-256."""
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
        return FileFacts(bytes=os.fstat(file.fileno()).st_size, sha256=digest)


def read_manifest(folder: Path) -> dict[str, FileFacts] | None:
    """Read and verify a folder's manifest; None if it has none.

    Raises:
        Damaged: It can't be read, or differs from what was written.
    """
    path = f"{folder}/{MANIFEST}"
    try:
        content = read_object(path)
    except FileNotFoundError:
        return None
    manifest = _check(_Manifest, path, content)
    if manifest.sha256 != _digest(manifest.files):
        raise Damaged(path, "isn't what was written (its SHA-256 is another)")
    return manifest.files


def write_manifest(folder: Path, files: dict[str, FileFacts]) -> None:
    """Write a folder's manifest."""
    facts = {name: known.model_dump() for name, known in files.items()}
    write_json(folder / MANIFEST, {"format": 1, "files": facts, "sha256": _digest(files)})


def _digest(files: dict[str, FileFacts]) -> str:
    lines = [f"{known.sha256} {known.bytes} {name}\n" for name, known in sorted(files.items())]
    return hashlib.sha256("".join(lines).encode("utf-8", "surrogatepass")).hexdigest()


def _verify(path: Path | str, text: bytes, known: FileFacts | None) -> None:
    if known is None:
        raise Damaged(path, "the manifest doesn't name it")
    if len(text) != known.bytes:
        raise Damaged(path, _other_size(len(text), known.bytes))
    _compare(path, hashlib.sha256(text).hexdigest(), known.sha256)


def _compare(path: Path | str, found: str, expected: object) -> None:
    if found != expected:
        raise Damaged(path, "isn't what was written (its SHA-256 is another)")


def _other_size(size: int, expected: int) -> str:
    return f"isn't what was written ({size:,} bytes, not {expected:,})"


def _unreadable(error: OSError) -> str:
    if error.errno == errno.ENOTDIR:
        return "can't be read: a file is in its folder's place"
    return f"can't be read: {error.strerror or error}"


def _check(kind: type[_Model], path: Path | str, content: dict[str, Any]) -> _Model:
    """Validate content as a pydantic model."""
    try:
        return kind.model_validate(content)
    except (ValidationError, RecursionError) as error:
        raise Damaged(path, _first_problem(error)) from None


def _first_problem(error: ValidationError | RecursionError) -> str:
    if isinstance(error, RecursionError):
        return "is nested too deeply"
    first = error.errors(include_url=False)[0]
    place = ".".join(map(str, first["loc"]))
    if first["type"] == "missing":
        return f"key '{place}' is missing"
    text = first["msg"].removeprefix("Value error, ")
    return f"key '{place}' is {str(first['input'])[:80]!r}: {text}" if place else text


@lru_cache
def _npy_header(count: int) -> bytes:
    """Return the header that NumPy writes before an array of ``count`` bytes."""
    import numpy as np

    file = io.BytesIO()
    shape = {"descr": "|u1", "fortran_order": False, "shape": (count,)}
    np.lib.format.write_array_header_1_0(file, shape)
    return file.getvalue()


def _parsed_table(path: Path | str, text: bytes, *, trusted: bool) -> "pa.Table":
    """Parse a Parquet file; refuse one that no hash verifies if it claims too many rows."""
    import pyarrow as pa
    from pyarrow import parquet

    try:
        file = parquet.ParquetFile(pa.BufferReader(text))
        facts = file.metadata
        claimed = facts.num_rows * max(1, facts.num_columns)
        if not trusted and not 0 <= claimed <= _MOST_VALUES:
            raise Damaged(path, f"claims {facts.num_rows:,} rows, more than it can hold")
        return file.read(use_threads=False)
    except Damaged:
        raise
    except (OSError, ValueError, KeyError, TypeError, MemoryError, OverflowError) as error:
        raise Damaged(path, f"not a readable Parquet file ({error})") from None
