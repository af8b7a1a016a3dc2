"""Benchmarks: `python -m bench.NAME` measures a real mesh and prints a table, or one JSON object with --json."""
