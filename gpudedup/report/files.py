"""Write results as tables in files; a scan's pages, and beside them its shared contents."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gpudedup.errors import OutputError, UsageError
from gpudedup.output import reason, whole_file, whole_files

if TYPE_CHECKING:
    import pyarrow as pa

    from gpudedup.scanning.result import Scan

SUFFIXES = (".arrow", ".parquet")


def contents_path(path: str | os.PathLike[str]) -> Path:
    """Return the path of the contents beside the page table ``path``: ``r.contents.arrow``.

    :raises UsageError: if the suffix is none of :data:`SUFFIXES`
    """
    target = _checked(path)
    return target.with_suffix(f".contents{target.suffix}")


def _checked(path: str | os.PathLike[str]) -> Path:
    target = Path(path)
    if target.suffix not in SUFFIXES:
        raise UsageError(f"{target}: a result is named {' or '.join('*' + s for s in SUFFIXES)}")
    return target


@contextmanager
def table_file(
    path: str | os.PathLike[str], *, force: bool = False
) -> Iterator[Callable[[pa.Table], None]]:
    """Give a function that writes one table to ``path``; the file appears when the block ends.

    Enter it before the work: a path that cannot be written then costs no work.

    :param path: ``*.arrow`` or ``*.parquet``
    :param force: replace an existing file
    :raises UsageError: if the suffix is none of :data:`SUFFIXES`
    :raises OutputError: if the file exists (without force) or cannot be written
    """
    parquet = _checked(path).suffix == ".parquet"
    with whole_file(path, force=force) as temporary:

        def write(table: pa.Table) -> None:
            try:
                _write(temporary, parquet, table.schema, table.to_batches())
            except OSError as error:
                raise OutputError(path, reason(error)) from None

        yield write


@contextmanager
def json_file(
    path: str | os.PathLike[str], *, force: bool = False
) -> Iterator[Callable[[Mapping[str, Any]], None]]:
    """Give a function that writes one JSON object to ``path``; as :func:`table_file`.

    :param path: ``*.json``
    :raises UsageError: if it has another suffix
    :raises OutputError: if the file exists (without force) or cannot be written
    """
    if Path(path).suffix != ".json":
        raise UsageError(f"{path}: a result is named *.json")
    with whole_file(path, force=force) as temporary:

        def write(record: Mapping[str, Any]) -> None:
            try:
                temporary.write_text(json.dumps(record, indent=1) + "\n")
            except OSError as error:
                raise OutputError(path, reason(error)) from None

        yield write


@contextmanager
def result_files(
    path: str | os.PathLike[str], *, force: bool = False
) -> Iterator[Callable[[Scan], None]]:
    """Give a function that writes the tables of a scan to ``path`` and beside it.

    Enter it before the scan: a path that cannot be written then costs no work. When the block ends,
    both files appear or neither.

    :param path: ``*.arrow`` or ``*.parquet``, for the page table (:data:`gpudedup.schema.PAGES`);
        the contents (:data:`gpudedup.schema.CONTENTS`) go to :func:`contents_path`
    :param force: replace existing files
    :raises UsageError: if the suffix is none of :data:`SUFFIXES`
    :raises OutputError: if a file exists (without force) or cannot be written
    """
    beside = contents_path(path)
    with whole_files([path, beside], force=force) as (pages, contents):

        def write(scan: Scan) -> None:
            from gpudedup.scanning.tables import page_batches
            from gpudedup.schema import CONTENTS, PAGES

            parquet = beside.suffix == ".parquet"
            try:
                _write(pages, parquet, PAGES, page_batches(scan.population, scan.partition))
                _write(contents, parquet, CONTENTS, scan.contents.to_batches())
            except OSError as error:
                raise OutputError(path, reason(error)) from None

        yield write


def _write(path: Path, parquet: bool, schema: pa.Schema, batches: Iterable[pa.RecordBatch]) -> None:
    import pyarrow as pa

    if parquet:
        from pyarrow.parquet import ParquetWriter

        with ParquetWriter(path, schema, compression="zstd") as file:
            for batch in batches:
                file.write_batch(batch)
    else:
        with pa.OSFile(os.fspath(path), "wb") as sink, pa.ipc.new_file(sink, schema) as file:
            for batch in batches:
                file.write_batch(batch)
