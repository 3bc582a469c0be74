"""One offline HTML file that says what a study found, how sure that is, and what it cost.

    from comkd_ray import report; report.build(Path("reports/quickstart"))

Reads results/*.parquet, study.yaml and provenance.json of a run, and nothing else: any machine can
rebuild a report; `document.py` is its frame.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from comkd_ray.claims import summary
from comkd_ray.document import Section, document
from comkd_ray.findings import Findings, findings, sentences
from comkd_ray.markup import Html, details, join, paragraph, tag, text
from comkd_ray.published import ABLATIONS
from comkd_ray.published_gap import comparison
from comkd_ray.reference_rows import ReferenceRow, reference_rows, remarks
from comkd_ray.report_ablation import ablation_sections
from comkd_ray.report_facts import DEMO_NOTICE, arms_by_status, failed_table, provenance_tables
from comkd_ray.report_figures import (
    cost_section,
    method_sections,
    modules_section,
    search_sections,
)
from comkd_ray.report_tables import (
    compared_table,
    explained_table,
    flagged_table,
    plain_table,
    tiles,
    titled,
    top_table,
)
from comkd_ray.results import write_atomic
from comkd_ray.run import Run, read
from comkd_ray.tables import (
    ablation_table,
    paired_notes,
    published_table,
    reference_table,
    variants_notes,
    variants_table,
)
from comkd_ray.variants import variants


def build(run: Path) -> Path:
    """Write `run`/report.html from the tables of `run`; its path. UserError without arms."""
    target = run / "report.html"
    write_atomic(target, page(read(run)).encode())
    return target


def page(run: Run) -> str:
    """The whole document."""
    found = findings(run.arms, run.enumerated, run.rule, run.fixed)
    rows = reference_rows(run.arms, run.study)
    sections = [
        _headline(run, found),
        _references(run, rows),
        *_variants(run),
        *ablation_sections(run),
        _published(run, rows),
        *search_sections(run),
        modules_section(run, found),
        *method_sections(run),
        cost_section(run),
        _source(run),
    ]
    head = join([tag("h1", run.name), _note(run)])
    return document(run.name, head, sections)


def _note(run: Run) -> Html:
    note = run.study.note if run.study is not None else ""
    finished = str(run.provenance.get("finished") or run.provenance.get("created") or "")[:10]
    kind = f"comkd-ray study{', ' * bool(finished)}{finished}"
    return join([paragraph(kind, class_="kind"), paragraph(note, class_="note") if note else ""])


def _headline(run: Run, found: Findings) -> Section:
    lines = [line for line in (summary(run.fixed, run.study, run.rule), *sentences(found)) if line]
    words = [paragraph(line, class_="lead" if k == 0 else "") for k, line in enumerate(lines)]
    explained = [tag("h3", "Who learned from what, what chose, what was tested")]
    explained.append(explained_table(run.explained()))
    content = [_notices(run), *words, tiles(found, run.provenance), *explained, _remarks(run, found)]
    if found.compared:
        content += [
            titled("The best arm and what it is read against", run.scores),
            compared_table(found.compared, run.scores),
            titled(f"Best arms by {run.scores.objective}", run.scores),
            top_table(run.arms),
        ]
    return "result", "Result", join([*content, _flagged(run, found), failed_table(run.arms)])


def _flagged(run: Run, found: Findings) -> Html:
    """Arms that collapsed or peaked at once; nothing where none did."""
    if not found.flagged:
        return Html("")
    return join([titled("Arms that collapsed or peaked at once", run.scores), flagged_table(found)])


def _notices(run: Run) -> Html:
    """What the reader has to know before the first number."""
    lines = [DEMO_NOTICE] if run.is_demo else []
    if run.provenance.get("sample"):
        lines.append("A sample that ships with the source; the command under Provenance makes it again.")
    if run.scores.warning:
        lines.insert(0, f"Scores of arms on this page are {run.scores.warning}.")
    return join(paragraph(line, class_="notice") for line in (*lines, *run.troubles))


def _remarks(run: Run, found: Findings) -> Html:
    """What qualifies the numbers, a line each."""
    lines = [arms_by_status(found, run.provenance.get("arms_asked"))]
    if tested := run.images.get("test"):
        lines.append(f"The test split has {tested:,} images: one image is {100 / tested:.2g} points or more.")
    best = found.best
    if best is not None and (best["epochs_done"] or 0) > 1 and best["best_epoch"] == best["epochs_done"]:
        lines.append("The best arm was best in its last epoch: more train.epochs may still help.")
    lines += [str(line) for line in run.provenance.get("notes") or ()]
    return tag("ul", *(tag("li", line) for line in lines))


def _references(run: Run, rows: list[ReferenceRow]) -> Section:
    lines = [paragraph(line, class_="caution") for line in remarks(run.arms, run.study, rows)]
    shown = plain_table(reference_table(rows, run.scores))
    content = join([titled("One study, from zero-shot to ComKD-CLIP", run.scores), shown, *lines])
    return "references", "Reference rows", content


def _variants(run: Run) -> list[Section]:
    """Every setting of a grid or a list, where the 2x2 and the reference rows do not say it already."""
    found = variants(run.fixed, run.enumerated, run.rule)
    if found is None:
        return []
    notes = [*variants_notes(found, run.scores), *paired_notes(run.scores, run.rule)]
    lines = [paragraph(line, class_="caution") for line in notes]
    shown = plain_table(variants_table(found, run.scores))
    content = join([titled(f"{len(found.rows)} variants", run.scores), shown, *lines])
    return [("variants", "Variants", content)]


def _published(run: Run, rows: list[ReferenceRow]) -> Section:
    """Published numbers beside ours where they can be compared; else what differs."""
    found = comparison(run.study, run.data, rows)
    parts = [paragraph(_without_home(line), class_="caution") for line in found.words]
    if found.gaps:
        table = plain_table(published_table(found.gaps, run.scores))
        parts = [titled("Published and ours, test (%)", run.scores), table, *parts]
    parts.append(
        details(
            f"Published ablations ({len(ABLATIONS)} rows)",
            paragraph(
                "PromptKD on ImageNet, base to novel, 64 images a class where the item says no other; and "
                "ComKD-CLIP on SUN397. No study here repeats them exactly, so no gap is shown.",
                class_="caution",
            ),
            plain_table(ablation_table()),
        )
    )
    return "published", "Published numbers", join(parts)


def _source(run: Run) -> Section:
    shown = _without_home(run.study_text)
    parts: list[object] = [provenance_tables(_plain(run.provenance))]
    if shown:
        parts.append(details("study.yaml, resolved", tag("pre", shown)))
    parts.append(
        paragraph(
            "Every score on this page comes from results/arms/*.parquet and results/epochs/*.parquet beside "
            "it; wall time, memory and numbers of images from provenance.json.",
        )
    )
    return "provenance", "Provenance", join([text(part) for part in parts])


def _plain(value: Any) -> Any:
    """Provenance without the path of anybody's home."""
    if isinstance(value, dict):
        return {key: _plain(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_plain(inner) for inner in value]
    return _without_home(value) if isinstance(value, str) else value


def _without_home(words: str) -> str:
    home = str(Path.home())
    return words.replace(home, "~") if len(home) > 1 else words
