"""Dagster machinery that the stages share: partitions, executors, resources, runs, sensors, shards, tables."""
