"""Files into rows: JSON Lines, JSON arrays, CSV, TSV, Parquet, each also packed, and directories of them.

The main process cuts files into blocks (`read_blocks`), worker processes turn blocks into rows (`rows_of`).
"""

from tunewright.data.read.blocks import LIMITS, UNPARSED, Block, Limits, Record, records_of
from tunewright.data.read.files import read_all_blocks, read_blocks
from tunewright.data.read.rows import Row, read_rows, rows_of
from tunewright.data.read.sources import Source, plan_sources

__all__ = [
    "LIMITS",
    "UNPARSED",
    "Block",
    "Limits",
    "Record",
    "Row",
    "Source",
    "plan_sources",
    "read_all_blocks",
    "read_blocks",
    "read_rows",
    "records_of",
    "rows_of",
]
