"""What went wrong in a run, as sentences for the person who has to mend it.

Belongs here: words from Dagster's events. Does not belong here: the words themselves, which stand
where the facts are known.
"""

import re
from collections.abc import Iterable

import dagster as dg

# An error of our own is a sentence; of another's the class may be the better half.
_OUR_ERROR = re.compile(r"^(exports|ml_assets|orchestration)\.[\w.]+: ")
MAKE_ROOM = "Free disk space there and run again; the last published version stays live."


def sentences(events: Iterable[dg.DagsterEvent]) -> list[str]:
    """A line per failed step, in the words of the failure, and one per resource that failed.

    Args:
        events: Of one run; what is no failure is passed over.
    """
    lines = []
    for event in events:
        if event.event_type_value == "RESOURCE_INIT_FAILURE":
            error = event.engine_event_data.error
            # Without the name of the exception's class.
            if error is not None:
                lines.append((error.cause or error).message.strip().partition(": ")[2])
        elif event.is_step_failure:
            lines.append(f"{event.step_key}: {_reason(event)}")
    return lines


def _reason(event: dg.DagsterEvent) -> str:
    data = event.step_failure_data
    metadata = data.user_failure_data
    reason = metadata.description if metadata else None
    if reason is None and data.error is not None:
        reason = _OUR_ERROR.sub("", (data.error.cause or data.error).message.strip())
    if reason is None:
        return "no reason is known; the step's log has more"
    if "No space left on device" in reason and "free" not in reason.lower():
        reason += f". {MAKE_ROOM}"
    return reason
