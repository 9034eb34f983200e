"""From a configuration to `result.json`: `start` runs one run, `trainer` holds the one loop that trains every task."""
