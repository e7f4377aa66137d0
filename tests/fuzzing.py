"""Loads landing folders full of damage with the real ingest and staging SQL, and counts.

`python tests/fuzzing.py 80` prints what became of the files of 80 folders, by kind of damage.
"""

import argparse
import contextlib
import io
import re
import tempfile
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import duckdb
from dbt_helpers import compiled_sql, run_dbt
from fuzz_inputs import (
    CATALOGUE,
    MARK,
    RECEIVED_AT,
    FuzzFile,
    Record,
    landing_folders,
)
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import seed as with_seed
from hypothesis import strategies as st

from orchestration.landing.contract import LandingError
from orchestration.landing.ingest import ingest_folder

# In the order in which they read each other.
MODELS = {
    "base_events": "staging",
    "base_products": "staging",
    "base_users": "staging",
    "stg_products": "staging",
    "stg_users": "staging",
    "stg_events": "staging",
    "rejected_rows": "staging",
    "repaired_values": "staging",
    "int_duplicate_events": "intermediate",
    "int_events_deduplicated": "intermediate",
}
# What a message tells to do.
REMEDY = re.compile(
    r"\b([Rr]ename|[Ww]rite|[Ss]ave|[Cc]opy|[Cc]onvert|[Mm]ove|[Ll]et|[Pp]ut|has to) ", re.M
)
_SAMENESS = {
    "catalogue": "select * exclude (source_file, source_row) from staging.stg_products",
    "users": "select * exclude (source_file, source_row) from staging.stg_users",
    "events": "select * exclude (source_file, source_row, file_version) from "
    "intermediate.int_events_deduplicated",
    "accepted": "select * exclude (source_file, source_row, file_version) from staging.stg_events",
    "repaired": "select * exclude (source_file, source_row) from staging.repaired_values",
}

Row = tuple[Any, ...]


@dataclass
class Tally:
    """What became of the files of one kind of damage.

    `arrived` are the records in files that were loaded; each of them was accepted, rejected with a
    reason, or lost. Records of refused files wait in the folder and are not counted.
    """

    files: int = 0
    refused_files: int = 0
    arrived: int = 0
    accepted: int = 0
    rejected: int = 0
    lost: int = 0


def compile_staging() -> dict[str, str]:
    """Compile the models up to the deduplicated events; takes seconds."""
    # dbt prints one of the models.
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
        run_dbt("compile", Path(folder) / "memory.duckdb", select=list(MODELS))
    return {model: compiled_sql(model) for model in MODELS}


class Line:
    """A landing folder and a warehouse in memory, with the real ingest and staging."""

    def __init__(self, sql: Mapping[str, str], folder: Path) -> None:
        self.sql = sql
        self.folder = folder
        self.connection = duckdb.connect()
        # Starting a second thread costs more than these few rows.
        self.connection.execute("set threads = 1; set TimeZone = 'UTC'")
        self.connection.execute("create schema staging; create schema intermediate")
        for entity in ("events", "products", "users"):
            (folder / entity).mkdir(parents=True)

    def write(self, file: FuzzFile, records: Sequence[Record]) -> None:
        path = self.folder / file.entity / file.name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(file.render(records))

    def ingest(self) -> str:
        """Load the folder; return the message of a refusal, or nothing."""
        try:
            ingest_folder(
                self.connection, self.folder, received_at=RECEIVED_AT, progress=lambda _: None
            )
        except LandingError as error:
            return str(error)
        return ""

    def build(self) -> None:
        for model, schema in MODELS.items():
            self.connection.execute(
                f"create or replace table {schema}.{model} as {self.sql[model]}"
            )

    def rows(self, sql: str) -> list[Row]:
        return self.connection.execute(sql).fetchall()

    def raw(self) -> dict[str, list[Row]]:
        """Everything that was loaded."""
        tables = ("events", "products", "users", "malformed_lines", "landing_files")
        return {table: self.rows(f"from raw.{table} order by all") for table in tables}

    def output(self) -> dict[str, list[Row]]:
        """What the next layer sees, without the places the rows come from."""
        return {name: sorted(self.rows(sql), key=repr) for name, sql in _SAMENESS.items()} | {
            "rejected": self._rejected()
        }

    def _rejected(self) -> list[Row]:
        return sorted(
            self.rows(
                # A quote is never closed, or in the wrong place, by what comes after it.
                "select entity, column_name, reason, case when column_name <> '' then value end, "
                "row_text from staging.rejected_rows"
            ),
            key=repr,
        )

    def close(self) -> None:
        self.connection.close()


@contextlib.contextmanager
def _line(sql: Mapping[str, str]) -> Iterator[Line]:
    with tempfile.TemporaryDirectory(prefix="recmart-fuzz-") as folder:
        line = Line(sql, Path(folder) / "shop")
        try:
            yield line
        finally:
            line.close()


def check_folder(
    sql: Mapping[str, str],
    files: Sequence[FuzzFile],
    shuffled: Callable[[Sequence[Any]], Sequence[Any]],
    tallies: dict[str, Tally] | None = None,
) -> None:
    """Load a folder and assert that nothing is lost, doubled, half-loaded or told in a traceback.

    Args:
        sql: From compile_staging.
        files: What to write.
        shuffled: Puts files and records into another order.
        tallies: Counted into, by kind of damage.

    Raises:
        AssertionError: naming the file, and what became of it.
    """
    with _line(sql) as line:
        for file in files:
            line.write(file, file.records)
        message = line.ingest()
        raw = line.raw()
        refused = _check_refusals(files, raw, message)
        line.build()
        _check_rows(line, raw)
        counted = _check_records(line, files, raw, refused)
        output = line.output()

        assert line.ingest() == message, "the second load of the same folder says something else"
        assert line.raw() == raw, "the second load of the same folder changes the raw tables"

    with _line(sql) as other:
        # They come in three loads.
        reordered = shuffled(files)
        for third in range(3):
            for file in reordered[third::3]:
                records = file.records if file.is_ordered else shuffled(file.records)
                other.write(file, records)
            other.ingest()
        other.build()
        for name, rows in other.output().items():
            changes = [row for row in output[name] if row not in rows]
            news = [row for row in rows if row not in output[name]]
            assert rows == output[name], f"another order changes {name}: {changes} -> {news}"

    if tallies is not None:
        for file in files:
            tally = tallies[file.damage]
            tally.files += 1
            tally.refused_files += file.source_file in refused
        for damage, tally in counted.items():
            tallies[damage].arrived += tally.arrived
            tallies[damage].accepted += tally.accepted
            tallies[damage].rejected += tally.rejected
            tallies[damage].lost += tally.lost
            assert tally.lost == 0, f"{damage}: records are neither accepted nor rejected"


def _check_refusals(
    files: Sequence[FuzzFile], raw: Mapping[str, list[Row]], message: str
) -> set[str]:
    """Each file is either noted as loaded or named in the message, with nothing of it loaded."""
    loaded = {row[0] for row in raw["landing_files"]}
    refused = {file.source_file for file in files} - loaded
    paragraphs = message.split("\n") if message else []
    assert len(paragraphs) == len(refused), f"{len(refused)} are refused, said is {message!r}"
    for file in files:
        is_refused = file.source_file in refused
        assert file.fate in ("any", "refused" if is_refused else "loaded"), (
            f"{file.source_file} ({file.damage}) is {'refused' if is_refused else 'loaded'}, but "
            f"has to be {file.fate}: {message!r}"
        )
        if is_refused:
            name = file.source_file.encode("utf-8", "surrogateescape").decode(
                "utf-8", "backslashreplace"
            )
            about = [text for text in paragraphs if name in text]
            assert about, f"{name} is refused and not named in {message!r}"
            for text in about:
                assert text.endswith("."), text
                assert REMEDY.search(text), f"no remedy in {text!r}"
                said = text.replace(name, "")
                assert len(said) < 2_000 and said.isprintable(), f"not to be read: {text[:3000]!r}"
    for table in ("events", "products", "users", "malformed_lines"):
        half = {row[0] for row in raw[table]} & refused
        assert not half, f"{half} are refused, but raw.{table} has rows of them"
    return refused


def _check_rows(line: Line, raw: Mapping[str, list[Row]]) -> None:
    """Each row that arrived is accepted or rejected, once, and rejected for a reason."""
    noted = Counter[str]()
    for source_file, _, _, _, n_rows, n_malformed, _, _ in raw["landing_files"]:
        noted[source_file] += n_rows + n_malformed
    arrived: list[Row] = []
    for entity in ("events", "products", "users"):
        rows = [(entity, *row[:2]) for row in raw[entity]]
        rows += [(entity, row[0], row[2]) for row in raw["malformed_lines"] if row[1] == entity]
        arrived += rows
        sorted_rows = line.rows(
            f"select '{entity}', source_file, source_row from staging.stg_{entity} union all "
            f"select entity, source_file, source_row from staging.rejected_rows "
            f"where entity = '{entity}'"
        )
        assert sorted(sorted_rows) == sorted(rows), f"{entity}: arrived is not accepted + rejected"
    assert Counter(row[1] for row in arrived) == +noted, "raw.landing_files counts other rows"
    assert line.rows(
        "select count(*) from staging.rejected_rows where coalesce(reason, '') = ''"
    ) == [(0,)]


def _check_records(
    line: Line, files: Sequence[FuzzFile], raw: Mapping[str, list[Row]], refused: set[str]
) -> dict[str, Tally]:
    """Find every record again by its mark, accepted or rejected as it has to be."""
    accepted: dict[str, dict[str, Any]] = {}
    for entity in ("events", "products", "users"):
        marks = {row[:2]: _marks(row) for row in raw[entity]}
        found = line.connection.execute(f"from staging.stg_{entity}")
        names = [column[0] for column in found.description or ()]
        for row in found.fetchall():
            accepted |= {key: dict(zip(names, row, strict=True)) for key in marks[row[:2]]}
    rejected: dict[str, tuple[str | None, str]] = {}
    for column, reason, text in line.rows(
        "select column_name, reason, row_text from staging.rejected_rows"
    ):
        rejected |= dict.fromkeys(_marks((text,)), (column, reason))

    tallies: dict[str, Tally] = defaultdict(Tally)
    # A name whose content came under another one too: the last of them counts.
    last_names: dict[str, str] = {}
    for name, *_, twin in raw["landing_files"]:
        last_names[twin or name] = max(name, last_names.get(twin or name, ""))
    holders = {name: twin or name for name, *_, twin in raw["landing_files"]}
    catalogue = dict(line.rows("select product_id, source_file from staging.stg_products"))
    people = dict(line.rows("select user_id, source_file from staging.stg_users"))
    for file in files:
        if file.source_file in refused:
            continue
        tally = tallies[file.damage]
        for record in file.records:
            mark, fate = record.mark, record.fate
            story = f"{file.source_file} ({file.damage}), {record}: "
            tally.arrived += 1
            is_accepted, is_rejected = mark in accepted, mark in rejected
            tally.accepted += is_accepted
            tally.rejected += is_rejected and not is_accepted
            tally.lost += not (is_accepted or is_rejected)
            assert is_accepted or is_rejected, f"{story}lost"
            if fate == "any":
                continue
            assert is_accepted != is_rejected, f"{story}accepted and rejected"
            if fate == "line":
                assert rejected.get(mark, ("?", ""))[0] is None, f"{story}is no broken line"
            elif fate != "accepted":
                assert rejected.get(mark, ("?", ""))[0] == fate, f"{story}{rejected.get(mark)}"
            elif file.entity == "events":
                assert is_accepted, f"{story}{rejected.get(mark)}"
                row = accepted[mark]
                assert row["event_at"] == (record.at or row["event_at"]), f"{story}{row}"
                assert row["user_id"] == record.values["user_id"], f"{story}{row}"
            else:
                # From this file or one that comes after it.
                known, column = (
                    (catalogue, "product_id") if file.entity == "products" else (people, "user_id")
                )
                last_name = last_names[known[record.values[column]]]
                assert last_name >= last_names[holders[file.source_file]], f"{story}not known"
                assert (
                    is_accepted
                    or "has the same" in rejected[mark][1]
                    or ("later file" in rejected[mark][1])
                ), f"{story}{rejected[mark]}"
    assert set(CATALOGUE) <= set(catalogue)
    return tallies


def _marks(row: Iterable[Any]) -> set[str]:
    return {mark for value in row if isinstance(value, str) for mark in MARK.findall(value)}


def fuzz(examples: int, seed: int, *, sql: Mapping[str, str] | None = None) -> dict[str, Tally]:
    """Load that many landing folders and check each.

    Args:
        examples: Folders of about thirty files: two good ones, one of each kind, and some more.
        seed: The same seed gives the same folders.
        sql: From compile_staging; compiled when left out.

    Returns:
        What became of the files, by kind of damage.

    Raises:
        AssertionError: for a folder for which the promise does not hold.
    """
    compiled = sql or compile_staging()
    tallies: dict[str, Tally] = defaultdict(Tally)

    @with_seed(seed)
    @settings(
        max_examples=examples,
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
        # Shrinking a folder takes minutes; the message names the file.
        phases=[Phase.generate],
        report_multiple_bugs=False,
    )
    @given(files=landing_folders(), random=st.randoms(use_true_random=False))
    def check(files: Sequence[FuzzFile], random: Any) -> None:
        check_folder(compiled, files, lambda rows: random.sample(rows, len(rows)), tallies)

    check()
    return dict(sorted(tallies.items()))


def as_markdown(tallies: Mapping[str, Tally]) -> str:
    """A table with a line for each kind of damage."""
    lines = [
        "| damage | files | refused whole | records arrived | accepted | rejected | lost |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    total = Tally()
    for damage, tally in tallies.items():
        lines.append(_markdown_row(damage, tally))
        for name, value in vars(tally).items():
            setattr(total, name, getattr(total, name) + value)
    return "\n".join([*lines, _markdown_row("all", total)])


def _markdown_row(damage: str, tally: Tally) -> str:
    return f"| {damage} | " + " | ".join(f"{value:,}" for value in vars(tally).values()) + " |"


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("examples", type=int, nargs="?", default=80, help="landing folders")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    print(as_markdown(fuzz(arguments.examples, arguments.seed)))


if __name__ == "__main__":
    main()
