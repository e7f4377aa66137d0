"""`make stress`: runs killed hundreds of times, faults of the machine, readers under switches.

Writes docs/reliability.md; no figure comes from anywhere else. What does not hold is told on the
page and is the exit code. Another kind of stress is another entry of PARTS.

    PYTHONPATH=tests python -m stress [--kills 200] [--line-kills 40] [--seed 1] [--only PART ...]
"""

import argparse
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

from bench_all import say
from bench_measure import machine
from corruptions import CORRUPTIONS
from faults import DISK_MEGABYTES, FAULTS, can_mount, disk_full, place_in
from fuzzing import Tally as Tally_of_damage
from fuzzing import as_markdown, fuzz
from kill_line import DailyShop, kill_line, line_faults
from kills import RANDOM, Tally, Witness, children, kill_publishing, publish_taste, run_child
from switching import switch_under_readers

from exports.redis_server import EmbeddedRedis
from orchestration.settings import REPOSITORY

PAGE = REPOSITORY / "docs" / "reliability.md"

# A dozen places to stop at, from a disk that takes nothing to one that takes all but the last file.
_LEFT_BYTES = [n * 64 << 10 for n in (0, 1, 2, 4, 8, 12, 16, 20, 24, 28, 32, 40)]
_PAUSE_SECONDS = 0.1
_PRELOADED = ("faults", "switching", "line_preloaded")

# What the test suite injects already, one piece at a time.
ELSEWHERE = {
    "disk full (a limit on file sizes) while tables are staged": "test_versions.py::"
    "test_a_full_disk_is_a_sentence_and_leaves_the_live_version",
    "disk full (a limit on file sizes) while files are written": "test_files.py::"
    "test_a_full_disk_is_a_sentence_and_leaves_no_folder",
    "a file of the published version is damaged": "test_files.py::"
    "test_a_damaged_file_is_noticed_and_repaired_under_the_link",
    "a snapshot is open while the link is switched and its folder removed": "test_files.py::"
    "test_an_open_reader_keeps_its_version_and_a_new_process_gets_the_new_one",
    "a run ends before each step of a publish": "test_publish.py::"
    "test_a_run_that_ends_before_a_step_is_mended_by_the_next_one",
    "a copy is missing at the switch": "test_publish.py::"
    "test_nothing_is_switched_when_one_copy_is_missing",
    "keys of the version to roll back to have expired": "test_publish.py::"
    "test_a_rollback_to_keys_that_expired_loads_them_again",
    "Redis is killed while it is loaded": "test_redis_load.py::"
    "test_a_server_killed_mid_load_is_a_sentence_and_the_next_load_succeeds",
    "Redis hangs while it is loaded": "test_redis_load.py::test_a_server_that_hangs_is_a_sentence",
    "Redis is emptied while it is loaded": "test_redis_load.py::"
    "test_a_server_emptied_half_way_is_caught_by_counting",
    "Redis runs out of memory while it is loaded": "test_redis_load.py::"
    "test_a_full_server_is_a_sentence_and_gets_its_memory_back",
    "Redis would evict": "test_redis_load.py::test_a_server_that_would_evict_is_refused",
    "Redis is a replica": "test_redis_load.py::test_a_replica_is_a_sentence",
    "Redis hangs while it is read": "test_reader.py::"
    "test_a_redis_that_hangs_costs_a_tenth_of_a_second",
    "Redis lost the live version": "test_reader.py::"
    "test_a_redis_that_lost_the_live_version_is_no_unknown_user",
    "several runs start the embedded Redis at once": "test_redis_server.py::"
    "test_runs_that_start_it_at_once_share_one_server",
    "a run that started the embedded Redis was killed": "test_redis_server.py::"
    "test_the_server_of_a_killed_run_is_used_again",
    "the clock is set back while versions are removed": "test_versions.py::"
    "test_a_clock_that_was_set_back_does_not_change_which_versions_are_kept",
    "a run was killed while the gates' files were written": "test_crash.py::"
    "test_gates_judge_again_after_a_run_was_killed_while_they_wrote",
    "a run was killed while it held the warehouse": "test_crash.py::"
    "test_a_run_that_is_killed_lets_go_of_the_warehouse",
    **{
        corruption: "test_drift.py::test_a_corruption_blocks_the_publish_and_the_pointer_stays"
        f"[{corruption}]"
        for corruption in CORRUPTIONS
    },
    "a day lands tenfold": "test_drift.py::"
    "test_a_broken_day_stops_before_models_learn_and_once_it_is_mended_the_next_run_publishes",
}


def main() -> int:
    """Run the parts, print each as it is done, write the page if all were run."""
    chosen = _arguments()
    started = time.monotonic()
    sections, problems = {}, []
    with TemporaryDirectory(prefix="recmart-stress-", dir=chosen.folder) as name:
        for part in chosen.only:
            say(f"{part} begins")
            folder = Path(name) / part
            folder.mkdir()
            section, found = PARTS[part](folder, chosen)
            print(section, flush=True)
            sections[part] = section
            problems += found
    for problem in problems:
        say(f"does not hold: {problem}")
    if set(chosen.only) == set(PARTS):
        chosen.page.write_text(
            _page(
                [sections[part] for part in PARTS],
                problems,
                chosen,
                (time.monotonic() - started) / 60,
            )
        )
        say(f"{chosen.page} is written")
    return bool(problems)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--kills", type=int, default=200, help="in all (200)")
    parser.add_argument("--line-kills", type=int, default=40, help="of those, whole lines (40)")
    parser.add_argument("--first-kills", type=int, default=6, help="of those, first runs (6)")
    parser.add_argument("--switches", type=int, default=100, help="under readers (100)")
    parser.add_argument("--folders", type=int, default=80, help="with damaged files (80)")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS), metavar="PART")
    parser.add_argument("--folder", type=Path, help="where homes are made (the system's)")
    parser.add_argument("--page", type=Path, default=PAGE)
    return parser.parse_args()


# --- parts: each gives its section of the page, and what did not hold ---------------------------


def kills(folder: Path, chosen: argparse.Namespace) -> tuple[str, list[str]]:
    """The whole line, first runs and publishing, killed."""
    context = children(*_PRELOADED)
    shop = DailyShop(folder / "line")
    shop.folder.mkdir()
    shop.open()
    n_line = chosen.line_kills - chosen.first_kills
    line = kill_line(
        context,
        shop,
        n_kills=n_line,
        n_first=chosen.first_kills,
        seed=chosen.seed,
        progress=say,
    )
    home = folder / "publishing"
    home.mkdir()
    # Some runs of the line are over before they can be killed: publishing makes up for them.
    n_publishing = chosen.kills - line.tally.n_kills - line.first.n_kills
    with EmbeddedRedis(home) as redis_url:
        witness = Witness(home, redis_url)
        ended = run_child(context, home / "run.log", None, publish_taste, home, redis_url, 0, 300)
        assert ended.code == 0, ended.said
        publishing = kill_publishing(
            context, witness, n_kills=n_publishing, seed=chosen.seed, n_users=300, progress=say
        )
    tallies = (line.tally, line.first, publishing)
    n_kills = sum(each.n_kills for each in tallies)
    n_survived = sum(each.n_survived for each in tallies)
    n_next, n_mended = sum(each.n_next for each in tallies), sum(each.n_mended for each in tallies)
    n_split = sum(each.n_split for each in tallies)
    problems = [problem for each in tallies for problem in each.problems]
    if line.rows_lost or line.differing:
        problems.append(f"{line.rows_lost} rows lost, {line.differing} rows differ")
    text = f"""\
## Runs that are killed

SIGKILL to the process group of a run: half at random moments, half right before or after a
function that a step begins or ends with. Before each run its input changes, so that the version it
makes is a new one. After each kill the serving tables, the snapshot and Redis are read in SQL, in
Redis's own commands and with the client library: each has to show one version and all of it, every
row counted and hashed as it was staged. After about a half of the kills of the line and a third of
the others, the next run has to end well, with the new version on every surface and nothing left
over; the rest are killed again in the state that the kill before them left.

**{n_survived} of {n_kills} kills survived; {n_mended} of {n_next} next runs mended everything by
themselves; rows lost: {line.rows_lost} of {line.n_rows:,}.** The lists of the home that was killed
{line.tally.n_kills} times were compared with those of a home that never was, on the same files:
{line.differing} of {line.compared:,} rows differ. After {n_split} kills the surfaces showed two
versions, each a whole one, until the next run: the kill fell between two pointers.

{
        _table(
            ["killed in or at", "the daily job", "its first run", "publishing alone", "survived"],
            [
                [step, *(each.kills.get(step, 0) for each in tallies), _of(step, tallies)]
                for step in _steps(tallies)
            ]
            + [["all", *(each.n_kills for each in tallies), f"{n_survived} of {n_kills}"]],
        )
    }

Again: `PYTHONPATH=tests python -m stress --only kills --kills {chosen.kills} --line-kills \
{chosen.line_kills} --first-kills {chosen.first_kills} --seed {
        chosen.seed
    }`. A run of the line takes
{line.run_seconds:.0f} s there, most of it dbt and imports.
"""
    return text, problems


def _steps(tallies: Iterable[Tally]) -> list[str]:
    found = {step: None for each in tallies for step in each.kills}
    return sorted(found, key=lambda step: (step != RANDOM, step.lower()))


def _of(step: str, tallies: Sequence[Tally]) -> str:
    survived = sum(each.survived.get(step, 0) for each in tallies)
    return f"{survived} of {sum(each.kills.get(step, 0) for each in tallies)}"


def faults(folder: Path, chosen: argparse.Namespace) -> tuple[str, list[str]]:
    """The machine's faults, while a version is published and while the line runs."""
    context = children(*_PRELOADED)
    rows, problems = [], []

    def inject(fault: str, work: Callable[[], list[str]]) -> None:
        say(fault)
        try:
            said = work()
        except Exception as error:
            problems.append(f"{fault}: {error!r}")
            rows.append([fault, "no", str(error)])
            return
        rows.append([fault, len(said), _shortened(said[-1], folder)])

    for n, (name, fault) in enumerate(FAULTS.items()):
        with place_in(context, folder / str(n)) as place:
            inject(name, lambda fault=fault, place=place: fault(place))  # type: ignore[misc]
    if can_mount(folder):
        inject(
            "the disk is full while a version is published",
            lambda: disk_full(context, folder / "disk", _LEFT_BYTES),
        )
        found: dict[str, list[str]] = {}
        try:
            say("faults of the whole line")
            found = line_faults(context, folder / "line")
        except Exception as error:
            problems.append(f"faults of the whole line: {error!r}")
        for name, said in found.items():
            rows += [[name, 1, _shortened(each, folder)] for each in said]
    else:
        problems.append("no full disk: mounting a small one takes root")
    n_injected = sum(row[1] for row in rows if isinstance(row[1], int))
    text = f"""\
## Faults

Each is given to the real part: a server that is killed, frozen or short of memory, a disk of
{DISK_MEGABYTES} MB that is full, another process. **{n_injected} faults injected.** After each the
last version was live on every surface that could be read, the error said what to do, and the next
run published without repair.

{_table(["fault", "times", "what was said, or came of it"], rows)}

Again: `PYTHONPATH=tests python -m stress --only faults`
"""
    return text, problems


def switches(folder: Path, chosen: argparse.Namespace) -> tuple[str, list[str]]:
    """Rollbacks and publishes under readers."""
    with EmbeddedRedis(folder) as redis_url:
        found = switch_under_readers(
            children(*_PRELOADED),
            folder,
            redis_url,
            n_switches=chosen.switches,
            seconds_between=_PAUSE_SECONDS,
            per_second=1000,
        )
    problems = [
        f"{each.source}: {each.n_errors} errors, {each.n_mixed} mixed answers"
        for each in found.asked
        if each.n_errors or each.n_mixed
    ]
    median, longest = found.rollback_ms
    text = f"""\
## Readers while versions are switched

{len(found.rollback_seconds)} rollbacks and {len(found.publish_seconds)} publishes between three
versions, while readers asked for lists and, every tenth time, for a page of five shelves: Redis a
thousand times a second, the snapshot as often as one process can. Every answer was compared with
what each version says. **A rollback took {median:.0f} ms in the median and {longest:.0f} ms at
most**, all three surfaces together, on the same cores as the readers.

{
        _table(
            [
                "asked",
                "questions",
                "a second",
                "errors",
                "answers of no version",
                "versions seen",
                "slowest, ms",
            ],
            [
                [
                    each.source,
                    f"{each.n:,}",
                    f"{each.per_second:,.0f}",
                    each.n_errors,
                    each.n_mixed,
                    each.n_versions,
                    f"{each.slowest_ms:.0f}",
                ]
                for each in found.asked
            ],
        )
    }

Again: `PYTHONPATH=tests python -m stress --only switches --switches {chosen.switches}`
"""
    return text, problems


def suite(folder: Path, chosen: argparse.Namespace) -> tuple[str, list[str]]:
    """What the tests inject, run once more."""
    run = subprocess.run(
        [sys.executable, "-m", "pytest", "-rA", *(f"tests/{test}" for test in ELSEWHERE.values())],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
    )
    lines = run.stdout.splitlines()
    rows, problems = [], []
    for fault, test in ELSEWHERE.items():
        has_passed = any(line.startswith(f"PASSED tests/{test}") for line in lines) and not any(
            line.startswith((f"FAILED tests/{test}", f"ERROR tests/{test}")) for line in lines
        )
        rows.append([fault, f"`{test}`", "passed" if has_passed else "failed"])
        if not has_passed:
            problems.append(f"{test} does not pass")
    text = f"""\
## Faults that the test suite injects

The pieces one by one, in `make test` too.

{_table(["fault", "test", "now"], rows)}

Again: `PYTHONPATH=tests python -m stress --only suite`
"""
    return text, problems


def inputs(_: Path, chosen: argparse.Namespace) -> tuple[str, list[str]]:
    """Landing folders with damaged files."""
    found: dict[str, Tally_of_damage] = {}
    problems = []
    try:
        found = fuzz(chosen.folders, chosen.seed)
    except AssertionError as error:
        problems.append(f"a damaged file: {error}")
    n_files = sum(each.files for each in found.values())
    n_lost = sum(each.lost for each in found.values())
    text = f"""\
## Damaged input

{chosen.folders} landing folders of about thirty files each, most of them damaged, are loaded and go
through staging, then once more, then with their rows in another order. Each record has to be
accepted or rejected with a reason, a file that cannot be read has to be named while all others are
loaded, and neither the second load nor the order may change anything.

**{n_files:,} files; records lost: {n_lost:,}.**

{as_markdown(found)}

Again: `PYTHONPATH=tests python -m stress --only inputs --folders {chosen.folders} \
--seed {chosen.seed}`
"""
    return text, problems


PARTS: dict[str, Callable[[Path, argparse.Namespace], tuple[str, list[str]]]] = {
    "kills": kills,
    "faults": faults,
    "switches": switches,
    "inputs": inputs,
    "suite": suite,
}


# --- the page -----------------------------------------------------------------------------------


def _page(
    sections: list[str], problems: list[str], chosen: argparse.Namespace, minutes: float
) -> str:
    arguments = (
        f"--kills {chosen.kills} --line-kills {chosen.line_kills}"
        f" --first-kills {chosen.first_kills}"
    )
    held = "Everything held."
    if problems:
        held = "**Not everything held:**\n\n" + "\n".join(f"- {each}" for each in problems)
    head = f"""\
# Reliability

Written by `make stress STRESS="{arguments} --seed {chosen.seed}"` in {minutes:.0f} minutes on \
{machine()}

A run may end at any moment, and readers of the tables, the snapshot and Redis see one whole
version, old or new; the next run mends the rest. `exports/publish.py` says why. What is not tried
here: a cut of the machine's power (SIGKILL leaves what the system has taken to write; the files are
synced before they are named), and a Redis that is several servers.

{held}
"""
    return "\n".join([head, *sections])


def _table(header: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(_cell(each) for each in line) + " |" for line in lines)


def _cell(value: object) -> str:
    return " ".join(str(value).replace("|", "\\|").split())


def _shortened(said: str, folder: Path) -> str:
    """Without the folder that is gone when the page is read."""
    return said.replace(str(folder), "...")


if __name__ == "__main__":
    sys.exit(main())
