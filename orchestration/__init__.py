"""When things run: Dagster's assets, checks, jobs, and everything before the warehouse.

`landing/` holds what has nothing to do with Dagster: reading a shop's files.
"""
