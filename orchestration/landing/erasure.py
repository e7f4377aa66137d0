"""Who asked to be erased: the CSV files below `erasures/` of the landing folder."""

import csv
from pathlib import Path

from orchestration.landing.contract import LandingError, normalise, readable

FOLDER = "erasures"


def read_requests(folder: Path) -> list[str]:
    """The user ids of all requests, sorted, each once and as it stands there: blanks count.

    Args:
        folder: The landing folder. Files below `erasures/` are CSV with a header; the column
            `user_id` counts, others are for people. Names that start with a dot or an underscore
            are left out, as in the other folders.

    Raises:
        LandingError: if there is no landing folder, or naming the file and line of what is no
            request.
    """
    if not folder.is_dir():
        raise LandingError(
            f"The landing folder {folder} does not exist. Set RECMART_DATA to the folder with the "
            f"shop's files, whose folder {FOLDER}/ holds the requests."
        )
    user_ids: set[str] = set()
    for path in sorted((folder / FOLDER).rglob("*")):
        parts = path.relative_to(folder).parts
        if path.is_dir() or any(part.startswith((".", "_")) for part in parts):
            continue
        name = readable("/".join(parts))
        if path.suffix.lower() != ".csv":
            raise LandingError(
                f"{name} is of a type that is not understood. Requests are files that end in .csv: "
                "convert it, or move it out of the landing folder."
            )
        try:
            with path.open(encoding="utf-8-sig", newline="") as stream:
                reader = csv.DictReader(stream)
                columns = {normalise(each): each for each in reader.fieldnames or ()}
                if "user_id" not in columns:
                    raise LandingError(
                        f"{name} has no column user_id. Its first line has to name its columns, "
                        "user_id among them."
                    )
                for row in reader:
                    user_id = row[columns["user_id"]] or ""
                    if not user_id.strip():
                        raise LandingError(f"{name}, line {reader.line_num}: user_id is missing.")
                    user_ids.add(user_id)
        except (OSError, UnicodeDecodeError, csv.Error) as error:
            raise LandingError(
                f"{name} cannot be read ({error}). Write it as CSV in UTF-8 with the column "
                "user_id."
            ) from error
    return sorted(user_ids)
