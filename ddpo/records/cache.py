"""Numbers on disk by a key: one SQLite file that threads and processes share."""

import sqlite3
from collections.abc import Mapping, Sequence
from contextlib import closing
from pathlib import Path

from ddpo.errors import UserError

WAIT_S = 60.0
"""How long one process waits while another one writes."""


class Cache:
    """Numbers in FOLDER/rewards.sqlite. Raises UserError where that cannot be used or is damaged.

    It does not repair a damaged file: another process may be writing into it.
    """

    def __init__(self, folder: str) -> None:
        self.file = Path(folder).expanduser() / "rewards.sqlite"
        self._do(
            "CREATE TABLE IF NOT EXISTS known (key BLOB PRIMARY KEY, value REAL) WITHOUT ROWID",
            [()],
        )

    def get(self, keys: Sequence[bytes]) -> dict[bytes, float]:
        """The values that are known."""
        return dict(
            self._do("SELECT key, value FROM known WHERE key = ?", [(key,) for key in keys])
        )

    def put(self, values: Mapping[bytes, float]) -> None:
        """All of them or, where that fails, none."""
        self._do("INSERT OR REPLACE INTO known VALUES (?, ?)", list(values.items()))

    def _do(self, statement: str, rows: Sequence[tuple]) -> list[tuple[bytes, float]]:
        """In a connection of its own, since one belongs to one thread."""
        try:
            self.file.parent.mkdir(parents=True, exist_ok=True)
            with closing(sqlite3.connect(self.file, timeout=WAIT_S)) as connection, connection:
                return [found for row in rows for found in connection.execute(statement, row)]
        except (sqlite3.Error, OSError) as error:
            raise UserError(
                f"rewards: the cache {self.file} cannot be used ({error}); "
                "delete that file or name another folder"
            ) from error
