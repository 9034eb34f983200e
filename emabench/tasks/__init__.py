"""Tasks, found by name: `emabench/tasks/<name>.py` beside `conf/task/<name>.yaml`."""
