"""upload offline runs to W&B; make a table's workspace and report"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from emabench.commands.table import gathered, judged_of, plan
from emabench.compose import configuration
from emabench.errors import DONE, RunFailed, UserError, nearest
from emabench.runs.directory import RunDirectory, run_directories
from emabench.runs.files import write_text
from emabench.runs.tracking import is_synced, project, wandb_files, why_offline
from emabench.tables import spec

USAGE = (
    "emabench wandb sync [DIR] | workspace TABLE | report TABLE [entity=…] [seeds=N] [--dry-run] [overrides]"
)
VIEWS = ".wandb-views.json"  # in results_dir: where each view was saved, so that the same command updates it


def main(words: Sequence[str]) -> int:
    """`emabench wandb sync [DIR]`, or `emabench wandb workspace|report TABLE [--dry-run]`."""
    actions = {"sync": _sync, "workspace": _view, "report": _view}
    if not words or words[0] not in actions:
        raise UserError(f"{USAGE}{nearest(words[0], actions) if words else ''}")
    return actions[words[0]](list(words))


def _sync(words: list[str]) -> int:
    """Every run with W&B files that are not uploaded yet; the parts of a resumed run go up as one."""
    dry = "--dry-run" in words
    rest = [word for word in words[1:] if word != "--dry-run"]
    if len(rest) > 1 or any(word.startswith("-") for word in rest):
        raise UserError(f"{' '.join(rest)}: sync takes one directory; {USAGE}")
    root = Path(rest[0]) if rest else Path(configuration([]).results_dir)
    if not root.is_dir():
        raise UserError(f"{root}: is not a directory; name the one that holds the runs (results_dir)")
    runs = run_directories(root) or [root]
    going = [path for path in runs if RunDirectory(path).held()]
    todo = {path: parts for path in runs if path not in going and (parts := _unsynced(path))}
    for path in going:
        print(f"{path}  is running; skipped")
    if not todo:
        print(f"nothing to upload: no run below {root} has W&B files that are not uploaded yet")
        return DONE
    if not dry:
        _logged_in()
        if why := why_offline():
            raise RunFailed(f"W&B: {why}; nothing was sent")
    failed = []
    for path, parts in todo.items():
        print(f"{path}  {len(parts)} part{'s' if len(parts) > 1 else ''}", flush=True)
        if not dry:
            command = [sys.executable, "-P", "-m", "wandb", "beta", "sync", "--no-skip-online", "--yes"]
            done = subprocess.run([*command, "--id", path.name, *map(str, parts)])
            if done.returncode or not all(map(is_synced, parts)):  # it ends with 0 when nothing was sent, too
                failed.append(path)
    print(f"{len(todo) - len(failed)} of {len(runs)} runs {'to upload' if dry else 'sent'}")
    if failed:
        raise RunFailed(f"{len(failed)} of {len(todo)} runs were not uploaded (see above); run it again")
    return DONE


def _unsynced(path: Path) -> list[Path]:
    """The parts of a run that are to be uploaded, oldest first. Of parts that were online the last one has it all."""
    parts = wandb_files(path)
    online = [part for part in parts if part.parent.name.startswith("run-")]
    return [part for part in parts if not is_synced(part) and part not in online[:-1]]


def _view(words: list[str]) -> int:
    from emabench.report import wandb_views

    kind, rest = words[0], [word for word in words[1:] if word != "--dry-run"]
    if not rest or "=" in rest[0]:
        raise UserError(f"{USAGE}: TABLE is one of {', '.join(spec.names())}")
    table = spec.load(rest[0])
    own = dict(word.partition("=")[::2] for word in rest[1:] if word.startswith(("entity=", "seeds=")))
    overrides = [word for word in rest[1:] if not word.startswith(("entity=", "seeds="))]
    scale = next((word[6:] for word in overrides if word.startswith("scale=")), "small")
    spec.check_scale(scale)
    if not own.get("seeds", "1").isdecimal() or own.get("seeds") == "0":
        raise UserError(f"seeds={own['seeds']}: should be a whole number, 1 or more")
    first, looks = table.plan(scale).first, table.plan(scale).looks
    planned = plan(table, scale, range(first, first + int(own.get("seeds") or looks[0])), overrides)
    judged = judged_of(table, scale, gathered(planned), overrides)
    build = wandb_views.workspace if kind == "workspace" else wandb_views.report
    entity = own.get("entity") or os.environ.get("WANDB_ENTITY") or ""
    if "--dry-run" in words:
        print(json.dumps(wandb_views.spec(build(judged, entity, project())), indent=1, ensure_ascii=False))
        return DONE
    results_dir = Path(next(iter(next(iter(planned.values())).values())).results_dir)
    url = _save(
        build(judged, entity or _default_entity(), project()), results_dir, f"{kind} {table.name} {scale}"
    )
    print(f"{kind}  {url}")
    return DONE


def _default_entity() -> str:
    return _query(lambda api: api.default_entity)


def _logged_in() -> None:
    import wandb

    if not wandb.login(prompt=False, verify=False):
        raise UserError("W&B: not logged in; `wandb login` does that (--dry-run shows what would be made)")


def _query(question: Callable[[Any], Any]) -> Any:
    """What W&B answers. Raises UserError where nobody is logged in, RunFailed where there is no answer."""
    import wandb

    _logged_in()
    try:
        return question(wandb.Api(timeout=20))
    except Exception as error:
        raise RunFailed(f"W&B: {' '.join(str(error).split())[:300]}") from error


def _save(view: Any, results_dir: Path, name: str) -> str:
    """Save a view in the place of the one that was saved before under this name; returns its address."""
    file = results_dir / VIEWS
    try:
        known = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
    except ValueError:
        known = {}

    def save(_: Any) -> str:
        if name in known:
            before = type(view).from_url(known[name])
            for part in ("_internal_name", "_internal_id", "id"):
                if hasattr(before, part):
                    setattr(view, part, getattr(before, part))
        view.save()
        return view.url

    url = _query(save)
    write_text(file, json.dumps(known | {name: url}, indent=1) + "\n")
    return url
