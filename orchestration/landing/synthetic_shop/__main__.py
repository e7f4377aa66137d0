"""The command line: python -m orchestration.landing.synthetic_shop."""

import argparse
import sys
import time
from collections.abc import Sequence
from datetime import date
from pathlib import Path

from orchestration.landing.synthetic_shop.dirt import parse_dirt
from orchestration.landing.synthetic_shop.shop import DIRT_KINDS, ShopSettingsError
from orchestration.landing.synthetic_shop.write import FORMATS, ShopSummary, write_shop


def _whole_number(text: str) -> int:
    try:
        return int(text.replace("_", "").replace(",", ""))
    except ValueError:
        raise argparse.ArgumentTypeError(
            f"'{text}' is not a whole number; write one such as 1000."
        ) from None


def _date(text: str) -> date:
    try:
        return date.fromisoformat(text)
    except ValueError:
        raise argparse.ArgumentTypeError(
            f"'{text}' is not a date; write one such as 2024-01-31."
        ) from None


def _parser() -> argparse.ArgumentParser:
    width = max(map(len, DIRT_KINDS))
    kinds = "\n".join(f"  {kind:{width}}  {text}" for kind, text in DIRT_KINDS.items())
    parser = argparse.ArgumentParser(
        prog="python -m orchestration.landing.synthetic_shop",
        description="Write a synthetic shop as a landing folder: events/, products/, users/.",
        epilog=f"kinds of dirt (shares are shares of all rows of events unless said):\n{kinds}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="an empty folder")
    for name, help_text in (
        ("users", "users in the shop"),
        ("products", "products in the catalogue"),
        ("events", "rows of events, dirt included"),
        ("days", "length of the history"),
        ("seed", "equal arguments and seed give equal files"),
    ):
        parser.add_argument(
            f"--{name}", type=_whole_number, required=True, metavar="N", help=help_text
        )
    parser.add_argument(
        "--start",
        type=_date,
        default=date(2024, 1, 1),
        metavar="DATE",
        help="first day (default 2024-01-01); the pipeline refuses events after today",
    )
    parser.add_argument(
        "--format", choices=FORMATS, default="parquet", help="of the files (default parquet)"
    )
    parser.add_argument(
        "--dirt",
        metavar="DIRT",
        help="one SHARE for every kind but unknown_event_types, or kind=share,... (default none)",
    )
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Write a shop as the command line says and print what was written; 0 when all is well."""
    options = _parser().parse_args(arguments)
    began_at = time.monotonic()
    try:
        dirt = parse_dirt(options.dirt, file_format=options.format) if options.dirt else {}
        summary = write_shop(
            options.out,
            n_users=options.users,
            n_products=options.products,
            n_events=options.events,
            n_days=options.days,
            start=options.start,
            seed=options.seed,
            file_format=options.format,
            dirt=dirt,
        )
    except ShopSettingsError as error:
        print(error, file=sys.stderr)
        return 2
    except OSError as error:
        print(f"The shop could not be written to '{options.out}': {error}.", file=sys.stderr)
        return 1
    print(_report(summary, out=options.out, seconds=time.monotonic() - began_at))
    return 0


def _report(summary: ShopSummary, *, out: Path, seconds: float) -> str:
    lines = [
        f"{out}: {len(summary.rows_by_file)} files, {summary.n_events:,} rows of events"
        f" in {seconds:.1f} s"
    ]
    for heading, counts in (
        ("rows by event type", summary.rows_by_event_type),
        ("dirt", summary.dirt),
    ):
        if counts:
            width = max(map(len, counts))
            lines += [f"{heading}:", *(f"  {name:{width}}  {n:>13,}" for name, n in counts.items())]
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
