"""check the article's statements: `emabench audit 35`"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from emabench.errors import DONE, RunFailed, UserError

FLAGS = ("--deep", "--json")
EXAMPLES = {"verdict": "verdict=wrong", "out": "out=results/report"}


def main(words: Sequence[str]) -> int:
    """`emabench audit [NUMBER|SECTION|ID …] [verdict=WORD] [--deep] [--json] [out=DIR]`

    Check every statement of the article, or those that are named: 35 is an equation, 7.3 or §12 a section,
    9.2-apply a statement. verdict=wrong keeps one verdict. --deep searches harder (minutes). --json prints a list of
    objects; out=DIR writes audit.html, audit.md, audit.tex and audit.json there.
    Exit status 1 if a declared verdict is not supported by its check.
    """
    names, verdict, out, flags = _read(words)
    from emabench import audit

    chosen = audit.chosen(names)
    if verdict:
        chosen = [each for each in chosen if str(each.verdict).startswith(verdict)]
        if not chosen:
            kinds = ", ".join(str(kind) for kind in audit.Verdict)
            raise UserError(f"verdict={verdict}: none of the statements named; verdicts are: {kinds}")

    from emabench.report import audit as shown

    results = audit.run_all(shown.counted(chosen), deep="--deep" in flags)

    if "--json" in flags:
        print(shown.as_json(results))
    elif len(results) <= shown.IN_FULL:
        shown.show_each(results)
    else:
        shown.show_all(results)
    if out:
        from emabench.report import audit_page

        written = audit_page.write(results, Path(out))
        if "--json" not in flags:
            print(f"\npage    {written[0]}")
    unsupported = [result.statement.label for result in results if result.complaint]
    if unsupported:
        raise RunFailed(f"the check does not support what is declared of {', '.join(unsupported)}")
    return DONE


def _read(words: Sequence[str]) -> tuple[list[str], str, str, set[str]]:
    """Names, the values of verdict= and out=, and flags."""
    names: list[str] = []
    options = dict.fromkeys(EXAMPLES, "")
    flags = set()
    for word in words:
        key, equals, value = word.partition("=")
        if word in FLAGS:
            flags.add(word)
        elif equals and key in options:
            if not value:
                raise UserError(f"{word}: give a value, as in {EXAMPLES[key]}")
            options[key] = value
        elif word.startswith("-") or equals:
            raise UserError(f"{word}: emabench audit takes {', '.join(FLAGS)}, verdict=WORD and out=DIR")
        else:
            names.append(word)
    return names, options["verdict"], options["out"], flags
