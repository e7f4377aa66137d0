"""What a terminal shows of a run: one short line per thing that happened, no stack traces.

Everything else is in the Dagster UI and in the run's own logs.
"""

import logging

import dagster as dg

SHOWN_EVENTS = {"STEP_START", "STEP_SUCCESS", "STEP_FAILURE", "ASSET_CHECK_EVALUATION"}


class ShortLines(logging.Formatter):
    """Time, step, what happened."""

    def format(self, record: logging.LogRecord) -> str:
        """One line; a check only when it failed."""
        meta = getattr(record, "dagster_meta", None) or {}
        event = getattr(record, "dagster_event", None)
        step = meta.get("step_key") or ""
        message = meta.get("orig_message") or record.getMessage()
        if event is not None:
            message = {"STEP_START": "started", "STEP_SUCCESS": "done"}.get(
                event.event_type_value, message.splitlines()[0]
            )
        return f"{self.formatTime(record, '%H:%M:%S')}  {step:<22} {message}"


def is_shown(record: logging.LogRecord) -> bool:
    """Messages of the assets themselves, steps that begin and end, checks that fail."""
    event = getattr(record, "dagster_event", None)
    if event is None:
        # Steps that wait for a failed one say so, each; the failure itself is enough.
        is_echo = "Dependencies for step" in record.getMessage()
        return record.levelno >= logging.INFO and not is_echo
    if event.event_type_value == "ASSET_CHECK_EVALUATION":
        return not event.asset_check_evaluation_data.passed
    return event.event_type_value in SHOWN_EVENTS


@dg.logger(config_schema=dg.Field(str, is_required=False, default_value="INFO"))
def short_console(context: dg.InitLoggerContext) -> logging.Logger:
    """A console logger for people who wait for the run."""
    logger = logging.getLogger("recmart")
    logger.setLevel(context.logger_config)
    logger.propagate = False
    handler = logging.StreamHandler()
    handler.setFormatter(ShortLines())
    handler.addFilter(is_shown)
    logger.handlers = [handler]
    return logger
