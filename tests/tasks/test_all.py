"""What holds for the code of all tasks. How they behave is tested by `emabench.testing.suite`."""

from __future__ import annotations

import ast

from emabench.paths import PACKAGE


def test_no_task_imports_another() -> None:
    folder = PACKAGE / "tasks"
    for path in sorted(folder.rglob("*.py")):
        own = f"emabench.tasks.{path.relative_to(folder).parts[0].removesuffix('.py')}"
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("emabench.tasks"):
                names = {alias.name for alias in node.names}
                allowed = (
                    node.module == "emabench.tasks.base" or names == {"base"} or node.module.startswith(own)
                )
                assert allowed, f"{path}: {node.module} {names}"
