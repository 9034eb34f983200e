"""Write the committed pages of the tables again from their runs, in the present words; nothing is trained.

Each `NAME.json` holds the runs of a table; beside it are written `NAME.md`, `NAME.csv` and `NAME.claims.csv`. A test
holds them to that.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from emabench.paths import PACKAGE
from emabench.report import files
from emabench.runs.files import write_text
from emabench.tables import provenance, records, spec
from emabench.tables.judge import Judged, judge

FOLDER = PACKAGE.parent / "benchmarks" / "tables"


def main(argv: Sequence[str]) -> None:
    """`emabench bench tables [--folder DIR] [NAME …]`"""
    parser = argparse.ArgumentParser(prog="emabench bench tables", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help="these tables; all where none is named")
    parser.add_argument("--folder", type=Path, default=FOLDER, help="where the JSON files are")
    args = parser.parse_args(argv)
    for file in sorted(args.folder.glob("*.json")):
        if not args.names or file.stem in args.names:
            for ending, text in pages(judged(file)).items():
                write_text(file.with_suffix(f".{ending}"), text)
            print(file.with_suffix(".md"))


def judged(file: Path) -> Judged:
    """The table of a file of runs, judged."""
    own = PACKAGE / "bench" / f"{file.stem}.yaml"  # of rounding errors: measured without training
    table = spec.read(own) if own.exists() else spec.load(file.stem)
    scale, runs = records.read(file, table)
    return judge(table, scale, runs, since=provenance.claims_since(table.file) if table.file else [])


def pages(judged: Judged) -> dict[str, str]:
    """What is committed of a table, by the file's ending."""
    return {
        "md": files.markdown(judged),
        "csv": files.as_csv(judged),
        "claims.csv": files.claims_csv(judged),
    }
