"""A file of texts in, a file of vectors out; what was done before a kill is not done again.

Blocks of rows are read, embedded, and written, in order: while one is written, the next is on its way and a further one
is read. What has been written lies in a folder of its own (:mod:`tandem.client.partial`) until all is there.
"""

import io
import re
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import msgspec
import numpy as np
import pybase64
from numpy.typing import NDArray

from tandem.client import parquet, partial, sources
from tandem.client.background import Embedded, Embedder
from tandem.client.config import Kind, VLLMConfig
from tandem.client.partial import Done, Partial
from tandem.client.rows import BadRow, Fields, Position, Row, Source, changed
from tandem.errors import BadRequestError, SettingsError, SetupError

VECTORS, IDS, TEXTS, SKIPPED, WHOLE = "vectors.npy", "ids.jsonl", "texts.jsonl", "skipped.jsonl", "whole.parquet"
_BATCHES = 8  # in a block: the more, the better they sort by length; the fewer, the less a kill costs
_MOST_CHARACTERS = 8_000_000  # in a block
_HELD = 2  # blocks on their way
_ALIKE = 0.1  # how far two vectors of one model and text may lie apart, as a part of their length
_ITEM = re.compile(r"\binput\[\d+\]")


@dataclass(frozen=True, kw_only=True)
class Task:
    """What is to be embedded, and where to.

    Args:
        source: a file; None for standard input.
        out: ``.parquet`` or ``.npy``; ids then lie beside it, in ``.ids.jsonl``.
        format: one of :data:`tandem.client.sources.FORMATS`; by default as the file's ending says.
        field: the field, or column, with the text; ``text`` by default. Plain lines have none.
        id: the field with the rows' ids; by default they are numbered from 0.
        kind: which of the config's prefixes is put before each text.
        with_text: write texts, too (Parquet).
        skip_bad: pass over rows that cannot be embedded, and list them in this file.
        force: overwrite ``out``, and start over whatever an interrupted run has done.
        weights: what the model really is, where its name may stand for another later.
    """

    source: Path | None
    out: Path
    format: str | None = None
    field: str | None = None
    id: str | None = None
    kind: Kind = "document"
    with_text: bool = False
    skip_bad: Path | None = None
    force: bool = False
    weights: str = ""


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a run is.

    Attributes:
        rows: vectors written so far, also by runs before this one.
        skipped: bad rows passed over so far.
        part: how much of the input is done, from 0 to 1; None where nobody knows.
    """

    rows: int
    skipped: int
    part: float | None


class Job(msgspec.Struct, frozen=True, kw_only=True):
    """All that must be the same when a run goes on where another was interrupted; ``probe`` is base64 of float32."""

    input: tuple[int, ...]
    format: str
    field: str
    id: str | None
    model: str
    weights: str
    prefix: str
    dimensions: int | None
    normalize: bool
    with_text: bool
    replaces: bool
    probe: str

    @property
    def vector(self) -> NDArray[np.float32]:
        """That of a text known to all runs, shape (dim,): the model has changed when it does."""
        return np.frombuffer(pybase64.b64decode(self.probe), dtype="<f4")


def embed_file(task: Task, config: VLLMConfig, on_progress: Callable[[Progress], None]) -> Done:
    """Embed all rows of a file.

    Memory is bounded by some blocks of rows, whatever the file's size. A run that ends before its time, by an error or
    a kill, leaves what it has done in ``OUT.partial``; the next with the same task goes on there, and refuses to where
    the input, the settings or the model's vectors are not those of the run before.

    Args:
        on_progress: called before the first row, and whenever more is safely on disk.

    Returns:
        How many rows were embedded, and how many passed over.

    Raises:
        SettingsError: the task is wrong, or does not fit to what an interrupted run has left.
        SetupError: a file cannot be written, another process is writing it, or a package is missing.
        BadRequestError: a row cannot be embedded; names its line. What came before its block is kept.
        ClientError: as :meth:`tandem.VLLMClient.embed_batch`.
    """
    format = sources.format_of(task.source, task.format)  # noqa: A001 - as the option is called
    fields = _checked(task, format, config)
    try:
        with sources.opened(task.source, format, fields) as source, partial.claimed(task.out) as work:
            if task.force:
                work.clear()
            job = _before(task, work)
            if not work.done.finished:
                with Embedder(config, task.kind) as embedder:
                    job = _begun(_job(task, config, fields, source, embedder), job, work, source.name)
                    source.skip(work.done.position)
                    work.go_on()
                    blocks = _ahead(_blocks(source, config.batch_size * _BATCHES), embedder)
                    _rest(task, source, blocks, work, fields, on_progress)
            assert job is not None  # noqa: S101 - only a job can have been finished
            _published(task, job, work)
            return work.done
    except OSError as exc:
        raise SetupError(
            f"{exc.filename or task.out} cannot be written: {exc.strerror or exc}",
            "What is done is kept: the same command goes on from there",
        ) from exc


def _checked(task: Task, format: str, config: VLLMConfig) -> Fields:  # noqa: A002
    """The fields, if the task makes sense."""
    if task.out.suffix not in (".parquet", ".npy"):
        raise SettingsError(f"the output {task.out} ends neither in .parquet nor in .npy", "Rename it")
    if task.out.suffix == ".parquet":
        parquet.arrow()
    elif task.with_text:
        raise SettingsError("--with-text needs an output that holds texts", "Name one that ends in .parquet")
    if not task.out.parent.is_dir() or task.out.is_dir():
        raise SettingsError(f"{task.out} is no place for a file", "Make its folder first, or choose another OUT")
    taken = [path.resolve() for path in (task.source, task.out, *_beside(task)) if path is not None]
    if len(set(taken)) < len(taken):
        raise SettingsError("the input, the output and the file for bad rows must be different files")
    if format == "lines" and (task.field or task.id):
        raise SettingsError("plain lines have no fields", "Leave --field and --id out")
    field = "" if format == "lines" else task.field or "text"
    return Fields(text=field, id=task.id, longest=config.max_text_length)


def _before(task: Task, work: Partial) -> Job | None:
    """The job of an interrupted run, if there is one; else nothing of it is left.

    Raises:
        SettingsError: there is a finished output that nobody has given up.
    """
    told = work.job()
    if told is None:
        work.clear()
    try:
        job = msgspec.json.decode(told, type=Job) if told is not None else None
    except msgspec.DecodeError as exc:
        raise SettingsError(f"{work.path} was left by another version of Tandem", "Start over with --force") from exc
    given_up = job is not None and (job.replaces or work.done.finished)
    for target in (task.out, *_beside(task)):
        if target.exists() and not task.force and not given_up:
            raise SettingsError(f"{target} exists already", "Choose another name, or overwrite it with --force")
    if work.done.skipped and task.skip_bad is None:
        raise SettingsError(
            f"the interrupted run has passed over {work.done.skipped} bad rows", "Name the file for them: --skip-bad"
        )
    return job


def _job(task: Task, config: VLLMConfig, fields: Fields, source: Source, embedder: Embedder) -> Job:
    return Job(
        input=source.identity,
        format=source.format,
        field=fields.text,
        id=fields.id,
        model=config.model,
        weights=task.weights,
        prefix=config.prefix(task.kind),
        dimensions=config.dimensions,
        normalize=config.normalize,
        with_text=task.with_text,
        replaces=task.force,
        probe=pybase64.b64encode(embedder.probe().astype("<f4").tobytes()).decode(),
    )


def _begun(job: Job, before: Job | None, work: Partial, name: str) -> Job:
    """The job that is worked on: the interrupted one, if it is the same; else the new one, begun."""
    if before is None or not work.done.position.rows:
        job = msgspec.structs.replace(job, replaces=job.replaces or (before is not None and before.replaces))
        names = [IDS, SKIPPED, *([TEXTS] if job.with_text else [])]
        heads = {VECTORS: _head(0, job.vector.size), **dict.fromkeys(names, b"")}
        work.begin(msgspec.json.encode(job), heads)
        return job
    if job.input != before.input:
        raise changed(name)
    for setting in job.__struct_fields__:
        was, now = getattr(before, setting), getattr(job, setting)
        if was != now and setting not in ("probe", "replaces"):
            raise SettingsError(
                f"the interrupted run had other settings: {setting} was {was!r}, and is {now!r}",
                "Go on with those it had, or start over with --force",
            )
    if not _alike(job.vector, before.vector):
        raise SettingsError(
            f"the model {job.model} gives other vectors than before the interruption",
            "Bring the model back, or start over with --force",
        )
    return before


def _alike(one: NDArray[np.float32], other: NDArray[np.float32]) -> bool:
    return one.shape == other.shape and float(np.linalg.norm(one - other)) <= _ALIKE * float(np.linalg.norm(other))


@dataclass(frozen=True, slots=True)
class _Block:
    """Rows that are embedded together, and where the input goes on after them."""

    rows: Sequence[Row]
    bad: Sequence[BadRow]
    position: Position


def _rest(
    task: Task,
    source: Source,
    blocks: Iterator[tuple[_Block, Embedded]],
    work: Partial,
    fields: Fields,
    on_progress: Callable[[Progress], None],
) -> None:
    """Embed what has not been embedded yet."""
    on_progress(Progress(work.done.rows, work.done.skipped, source.part(work.done.position)))
    for block, embedded in blocks:
        refused = [_refused(block.rows[i], reason, fields) for i, reason in embedded.refused.items()]
        bad = sorted([*block.bad, *refused], key=lambda row: row.number)
        if bad and task.skip_bad is None:
            where = "row" if source.format == "parquet" else "line"
            raise BadRequestError(f"{source.name}, {where} {bad[0].line}: {bad[0].reason}", index=bad[0].number)
        good = [row for i, row in enumerate(block.rows) if i not in embedded.refused]
        work.append(_parts(good, bad, embedded, with_text=task.with_text), _further(work.done, good, bad, block))
        on_progress(Progress(work.done.rows, work.done.skipped, source.part(work.done.position)))
    work.append({}, msgspec.structs.replace(work.done, finished=True))


def _blocks(source: Source, size: int) -> Iterator[_Block]:
    rows = source.rows()
    while True:
        good: list[Row] = []
        bad: list[BadRow] = []
        characters = 0
        for row in islice(rows, size):
            characters += len(row.content)
            if isinstance(row, Row):
                good.append(row)
            else:
                bad.append(row)
            if characters >= _MOST_CHARACTERS:
                break
        if not good and not bad:
            return
        yield _Block(good, bad, source.position())


def _ahead(blocks: Iterator[_Block], embedder: Embedder) -> Iterator[tuple[_Block, Embedded]]:
    """Each block with its vectors, in order; the next is on its way meanwhile."""
    held: deque[tuple[_Block, Future[Embedded]]] = deque()
    for block in blocks:
        held.append((block, embedder.start([row.text for row in block.rows])))
        if len(held) > _HELD - 1:
            first, embedded = held.popleft()
            yield first, embedded.result()
    for first, embedded in held:
        yield first, embedded.result()


def _refused(row: Row, reason: str, fields: Fields) -> BadRow:
    return BadRow(row.number, row.line, _ITEM.sub(fields.subject, reason), row.content)


def _parts(
    good: Sequence[Row], bad: Sequence[BadRow], embedded: Embedded, *, with_text: bool
) -> dict[str, bytes | memoryview]:
    """What a block adds to each file."""
    vectors = np.delete(embedded.vectors, list(embedded.refused), axis=0) if embedded.refused else embedded.vectors
    parts: dict[str, bytes | memoryview] = {
        VECTORS: vectors.astype("<f4", copy=False).reshape(-1).data,
        IDS: _lines(row.id for row in good),
        SKIPPED: _lines(
            {"row": row.number, "line": row.line, "reason": row.reason, "content": row.content} for row in bad
        ),
    }
    if with_text:
        parts[TEXTS] = _lines(row.text for row in good)
    return {name: part for name, part in parts.items() if len(part)}


def _lines(values: Iterator[object]) -> bytes:
    return b"".join(msgspec.json.encode(value) + b"\n" for value in values)


def _further(done: Done, good: Sequence[Row], bad: Sequence[BadRow], block: _Block) -> Done:
    return msgspec.structs.replace(
        done,
        rows=done.rows + len(good),
        skipped=done.skipped + len(bad),
        position=block.position,
        whole_numbers=done.whole_numbers
        and all(isinstance(row.id, int) and -(2**63) <= row.id < 2**63 for row in good),
    )


def _fits(id: str | int) -> bool:  # noqa: A002
    return isinstance(id, int) and -(2**63) <= id < 2**63


def _published(task: Task, job: Job, work: Partial) -> None:
    """Move all files to their places, the output last; a kill between any two of these steps does no harm."""
    if task.skip_bad is not None:
        partial.copy(work.path / SKIPPED, task.skip_bad)
    if task.out.suffix == ".parquet":
        _write_parquet(job, work)
        partial.publish(work.path / WHOLE, task.out)
    else:
        if (vectors := work.path / VECTORS).exists():
            with vectors.open("r+b") as file:
                file.write(_head(work.done.rows, job.vector.size))
        partial.publish(work.path / IDS, _ids(task.out))
        partial.publish(vectors, task.out)
    done = work.done
    work.clear()
    work.done = done


def _beside(task: Task) -> list[Path]:
    """The files that come with the output."""
    ids = [_ids(task.out)] if task.out.suffix == ".npy" else []
    return [*ids, task.skip_bad] if task.skip_bad else ids


def _ids(out: Path) -> Path:
    return out.with_suffix(".ids.jsonl")


def _head(rows: int, size: int) -> bytes:
    """The beginning of an ``.npy`` file: of the same length for any number of rows, for which NumPy leaves room.

    Source: https://numpy.org/doc/stable/reference/generated/numpy.lib.format.html
    """
    head = io.BytesIO()
    shape = {"descr": "<f4", "fortran_order": False, "shape": (rows, size)}
    np.lib.format.write_array_header_1_0(head, shape)
    return head.getvalue()


def _write_parquet(job: Job, work: Partial) -> None:
    settings = {
        "model": job.model,
        "weights": job.weights,
        "prefix": job.prefix,
        "normalize": str(job.normalize).lower(),
    }
    with ExitStack() as files:
        vectors, ids, *texts = (
            files.enter_context((work.path / name).open("rb"))
            for name in (VECTORS, IDS, TEXTS)
            if name in work.done.sizes
        )
        vectors.seek(len(_head(0, job.vector.size)))
        parquet.write(
            work.path / WHOLE,
            vectors,
            ids,
            texts[0] if texts else None,
            size=job.vector.size,
            whole_numbers=work.done.whole_numbers,
            about={f"tandem.{name}": value for name, value in settings.items()},
        )
