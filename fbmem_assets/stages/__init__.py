"""Stages of the pipeline, one file each: assets and their checks. `STAGES` in definitions.py is the order."""
