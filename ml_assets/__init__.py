"""What the marts say, turned into recommendations: models, scoring, fallback and evaluation.

Pure functions, frames in and frames out. Dagster appears in `assets.py` alone; reading and
publishing tables is not done here.
"""
