"""docs/dump-format.md lists every column of every table as the schemas have them."""

from __future__ import annotations

import re
from pathlib import Path

import pyarrow as pa
import pytest

from gpudedup import schema

PAGE = Path(__file__).parents[2] / "docs" / "dump-format.md"
PAGE_SIZE = 4096
HEAD = "| column | type | null | meaning |"
TABLES: dict[str, list[pa.Field]] = {
    "dump": list(schema.dump_schema(PAGE_SIZE)),
    "mapping": list(schema.MAPPING),
    "merged dump": [schema.merged_schema(PAGE_SIZE, frames=1).field("content")],
    "pages": list(schema.PAGES),
    "contents": list(schema.CONTENTS),
    "mm.frames": list(schema.FRAMES),
    "mm.pages": list(schema.MANAGER_PAGES),
    "mm.aliases": list(schema.ALIASES),
    "mm.mappings": list(schema.MANAGER_MAPPINGS),
    "mm.layout_costs": list(schema.LAYOUT_COSTS),
    "operations": list(schema.LAYOUT_COSTS.field("operations").type.value_type),
    "trace": list(schema.trace_schema(PAGE_SIZE)),
    "replay.causes": list(schema.CAUSES),
    "replay.samples": list(schema.SAMPLES),
}


def described() -> dict[str, list[list[str]]]:
    """Return for each heading of the page the first three cells of its table's rows."""
    found: dict[str, list[list[str]]] = {}
    title, inside = "", False
    for line in PAGE.read_text().splitlines():
        if line.startswith("#"):
            title = line.strip("# `").lower()
        if not line.startswith("|"):
            inside = False
        elif line == HEAD:
            inside, found[title] = True, []
        elif inside and "---" not in line:
            found[title].append([cell.strip(" `") for cell in line.split("|")[1:4]])
    return found


def words(kind: pa.DataType) -> str:
    """Return a type as the page writes it."""
    if pa.types.is_dictionary(kind):
        return f"dictionary<{kind.index_type}, {words(kind.value_type)}>"
    if pa.types.is_struct(kind):
        return "struct"
    if pa.types.is_list(kind):
        return f"list<{words(kind.value_type)}>"
    return re.sub(rf"\[{PAGE_SIZE}\]", "[page size]", str(kind))


@pytest.mark.parametrize("name", TABLES)
def test_columns(name: str) -> None:
    expected = [[f.name, words(f.type), "yes" if f.nullable else "no"] for f in TABLES[name]]
    assert described()[name] == expected


def test_every_table_of_the_page_is_checked() -> None:
    assert set(described()) == set(TABLES)
