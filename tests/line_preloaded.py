"""For a process from which runs of the line are forked: everything they import, imported."""

from kills import preload_line

preload_line()
