"""Answer SQL over the tables of a revision with DuckDB, which can then neither read nor write anything else.

One SELECT (or EXPLAIN) is taken. The database lies in memory and is bounded; files, extensions, other databases, Python
variables and settings are out of its reach before the statement is seen.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow as pa

from fer_pipeline.core.documents import one_line
from fer_pipeline.core.errors import ConfigError
from fer_pipeline.inspection.revisions import Revision
from fer_pipeline.inspection.tables import TABLES

MEMORY = "2GB"  # of the database; nothing is written to a disk instead
LARGEST_RESULT = 2**28  # bytes, as Arrow holds them
BATCH_ROWS = 10_000
CLOSED: Mapping[str, str] = {
    "enable_external_access": "false",
    "autoinstall_known_extensions": "false",
    "autoload_known_extensions": "false",
    "allow_community_extensions": "false",
    "python_enable_replacements": "false",
    "temp_directory": "",
    "memory_limit": MEMORY,
}


def query(revision: Revision, sql: str) -> pa.Table:
    """Answers one SELECT over the tables that it names: mined, scores, faces, rejected (see `inspection.tables`).

    SQL with an error, or that writes, changes settings or reads anything else, and a result of more than
    `LARGEST_RESULT` are one line (ConfigError).
    """
    if re.fullmatch(r"\s*SHOW\s+TABLES\s*;?\s*", sql, re.IGNORECASE):
        return pa.table({"name": [*TABLES]})
    named = _tables_in(sql)
    scannable = {name: TABLES[name](revision) for name in named}
    answer = _answer(scannable, sql)
    for table in scannable.values():
        if fault := getattr(table, "fault", None):
            raise fault[0]
    if isinstance(answer, str):
        raise ConfigError(answer)
    return answer


def _tables_in(sql: str) -> list[str]:
    """Returns which tables a statement reads; those that it has as words where DuckDB cannot tell without columns."""
    import duckdb

    with duckdb.connect(":memory:", config=dict(CLOSED)) as database:
        try:
            found = {name.casefold() for name in database.get_table_names(sql)}
        except duckdb.Error:
            return [name for name in TABLES if re.search(rf"\b{name}\b", sql, re.IGNORECASE)]
    return [name for name in TABLES if name in found]


def _answer(tables: Mapping[str, Any], sql: str) -> pa.Table | str:
    """Returns the result, or what is wrong with the statement.

    It raises nothing: an error would keep the connection alive, which the database's library reports at the end.
    """
    import duckdb

    database = duckdb.connect(":memory:", config=dict(CLOSED))
    try:
        for name, table in tables.items():
            database.register(name, table)
        database.execute("SET lock_configuration = true")
        statements = database.extract_statements(sql)
        if len(statements) != 1:
            return f"the SQL holds {len(statements)} statements; give one SELECT"
        kind = statements[0].type.name
        if kind == "MULTI":  # DuckDB would first make a type of what it finds
            return "a PIVOT without its columns takes several statements; name them: PIVOT … ON label IN ('anger', …)"
        if kind not in ("SELECT", "EXPLAIN"):
            return f"{kind} is not allowed: the tables of a revision are only read; give one SELECT"
        reader = database.sql(sql).to_arrow_reader(BATCH_ROWS)
        batches, size = [], 0
        for batch in reader:
            size += batch.nbytes
            if size > LARGEST_RESULT:
                return f"the result has more than {LARGEST_RESULT:,} bytes; add a LIMIT, or count and group"
            batches.append(batch)
        rows = pa.Table.from_batches(batches, schema=reader.schema)
        return rows.rename_columns(_distinct(rows.column_names))
    except duckdb.OutOfMemoryException:
        return f"the query takes more than {MEMORY} of memory; add a WHERE or a LIMIT, or group by less"
    except Exception as error:  # Arrow's own, too, where a table is read meanwhile
        return _describe(error)
    finally:
        database.close()


def _distinct(names: Sequence[str]) -> list[str]:
    """Returns names of which none is there twice: those that repeat get a number behind."""
    taken: dict[str, None] = {}
    for name in names:
        number, new = 1, name
        while new in taken:
            number, new = number + 1, f"{name}_{number + 1}"
        taken[new] = None
    return list(taken)


def _describe(error: Exception) -> str:
    """Says what DuckDB says, without the drawing of the statement, and which tables there are."""
    text = one_line(str(error).partition("\n\nLINE ")[0].partition("\nLINE ")[0], 400)
    tables = f"; the tables are {', '.join(TABLES)}" if "Table with name" in text else ""
    if "disabled by configuration" in text or "has been locked" in text:
        tables = "; a query reads the tables of a revision alone"
    return f"the SQL cannot be answered: {text}{tables}"
