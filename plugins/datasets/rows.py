"""Writing rows to the two file types slime reads, JSONL and parquet, so that a failed conversion leaves no file behind.

The rows are written to a neighbour of the wanted file and renamed at the end; the wanted file's suffix picks the type.
"""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from plugins.errors import UserError

Row = dict[str, Any]
SUFFIXES = (".jsonl", ".parquet")


def write_rows(out: Path, rows: Iterable[Row]) -> int:
    """Write `rows` to `out`, replacing it, and return how many there were.

    Raises UserError for a suffix other than .jsonl or .parquet, for no rows, and when the file cannot be written.
    """
    if out.suffix not in SUFFIXES:
        raise UserError(f"{out}: data files end in {' or '.join(SUFFIXES)}, not in {out.suffix or 'nothing'}")
    part = out.with_name(f".{out.name}.part")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        count = _write_parquet(part, rows) if out.suffix == ".parquet" else _write_jsonl(part, rows)
        if count == 0:
            raise UserError(f"{out}: not written, there are no rows for it")
        part.replace(out)
    except OSError as error:
        raise UserError(
            f"{out}: cannot be written ({error.strerror or error}); free space or choose another place"
        ) from error
    finally:
        if part.exists():
            part.unlink()
    return count


def _write_jsonl(path: Path, rows: Iterable[Row]) -> int:
    count = 0
    with path.open("w", encoding="utf-8", newline="\n") as file:
        for row in rows:
            file.write(json.dumps(row, ensure_ascii=False) + "\n")
            count += 1
    return count


def _write_parquet(path: Path, rows: Iterable[Row]) -> int:
    import pyarrow as pa
    import pyarrow.parquet as pq

    table = pa.Table.from_pylist(list(rows))
    if table.num_rows:
        pq.write_table(table, path)
    return int(table.num_rows)
