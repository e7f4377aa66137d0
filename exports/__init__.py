"""Published versions: tables, files and Redis, and the reader that applications use."""
