"""A table as it is looked at in W&B: a workspace and a report over the runs of its group.

Both are built here from what was judged, without the network; saving them is one call of the command. Needs the
extra `wandb` (package wandb-workspaces).
"""

from __future__ import annotations

import shlex
from typing import TYPE_CHECKING, Any

from emabench.errors import UserError
from emabench.report import files
from emabench.runs.result import RAW
from emabench.tables.judge import Judged

if TYPE_CHECKING:
    from types import ModuleType


def workspace(judged: Judged, entity: str, project: str) -> Any:
    """A `wandb_workspaces` Workspace of the table's runs, seeds of one arm drawn as their mean."""
    ws, wr = _modules()
    return ws.Workspace(
        entity=entity,
        project=project,
        name=f"{judged.table.titled(judged.scale)} ({judged.scale})"[:128],
        sections=[
            ws.Section(name=name, panels=panels, is_open=True) for name, panels in _panels(wr, judged).items()
        ],
        settings=ws.WorkspaceSettings(x_axis="step"),
        runset_settings=ws.RunsetSettings(
            filters=_filter(judged), groupby=[ws.Config(key) for key in _apart(judged)]
        ),
    )


def report(judged: Judged, entity: str, project: str) -> Any:
    """A `wandb_workspaces` Report: the question, numbers and verdicts as of now, and panels of the runs."""
    _, wr = _modules()
    table = judged.table
    panels = [panel for panels in _panels(wr, judged).values() for panel in panels]
    for number, panel in enumerate(panels):
        panel.layout = wr.Layout(x=12 * (number % 2), y=8 * (number // 2), w=12, h=8)
    runs = wr.Runset(  # of the report's own project
        name=table.name, filters=_filter(judged), groupby=[f"config.{key}" for key in _apart(judged)]
    )
    scale = [f"scale={judged.scale}"]
    scale = [] if judged.scale == "small" or scale[0] in judged.overrides else scale
    return wr.Report(
        entity=entity,
        project=project,
        title=f"{table.titled(judged.scale)} ({judged.scale})"[:128],
        description=table.question,
        blocks=[
            wr.MarkdownBlock(files.markdown(judged)),
            wr.H2("Runs"),
            wr.PanelGrid(runsets=[runs], panels=panels),
            wr.H2("Again"),
            wr.CodeBlock(shlex.join(["emabench", "table", table.name, *scale, *judged.overrides])),
        ],
        width="fixed",
    )


def spec(view: Any) -> dict[str, Any]:
    """What would be saved, as plain data."""
    return view._to_model().model_dump(mode="json", by_alias=True, exclude_none=True)


def _modules() -> tuple[ModuleType, ModuleType]:
    try:
        from wandb_workspaces import workspaces
        from wandb_workspaces.reports import v2
    except ImportError as error:
        raise UserError(
            "workspaces and reports need the package wandb-workspaces: pip install 'emabench[wandb]'"
        ) from error
    return workspaces, v2


def _panels(wr: ModuleType, judged: Judged) -> dict[str, list[Any]]:
    """By section. Every set of weights that is a row of the table, and beside it whatever the runs measured."""
    averages = _averages(judged)
    at_end, along, windows = [], [], []
    for metric, about in judged.table.metrics.items():
        keys = [f"eval/{average}/{metric}" for average in averages]
        arrow = "lower is better" if about.better == "lower" else "higher is better"
        at_end.append(
            wr.BarPlot(
                title=f"{about.label}, raw against averaged ({arrow})",
                metrics=[wr.SummaryMetric(key) for key in keys],
                orientation="h",
            )
        )
        along.append(
            wr.LinePlot(
                title=f"{about.label} along training",
                x="step",
                y=keys,
                title_x="step",
                groupby_aggfunc="mean",
                groupby_rangefunc="minmax",
            )
        )
        windows.append(
            wr.CustomChart(
                query={"summaryTable": {"tableKey": "result"}},
                chart_name="wandb/scatter/v0",
                chart_fields={"x": "window", "y": metric},
                chart_strings={"title": f"{about.label} against the averaging window (steps; raw is 1)"},
            )
        )
    sections = {"Raw against averaged": at_end, "Along training": along, "Against the window": windows}
    if any(run.picture(RAW) for run in judged.all_runs):
        sections["Samples"] = [wr.MediaBrowser(title="Samples, raw beside averaged", media_keys=["samples"])]
    return sections


def _averages(judged: Judged) -> list[str]:
    measured = [row.average for run in judged.all_runs for row in run.result.rows]
    return list(dict.fromkeys([RAW, *(row.average for row in judged.rows.values()), *measured]))


def _apart(judged: Judged) -> list[str]:
    """The keys in which the table's arms differ: runs are drawn together that agree in them."""
    table = judged.table
    if len(table.arms) < 2:
        return []
    words = {arm: table.words(arm, judged.scale) for arm in table.arms}
    common = set.intersection(*(set(each) for each in words.values()))
    keys = [
        word.partition("=")[0].lstrip("+") for each in words.values() for word in each if word not in common
    ]
    return list(dict.fromkeys(keys))


def _filter(judged: Judged) -> str:
    return f"Metric('Group') = '{judged.table.name}' and Config('scale') = '{judged.scale}'"
