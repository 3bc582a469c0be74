"""The sections of the report that are led by a figure, with the words that say how to read it."""

from __future__ import annotations

from collections.abc import Callable

import plotly.graph_objects as go

from comkd_ray import cost_plots, front_plot, importance, plots, search_plots
from comkd_ray.arms import METHODS, full_budget, has_modules, module_cells, of_method, searched_keys
from comkd_ray.collapse import among
from comkd_ray.components import components
from comkd_ray.costs import cost_table, costs, saving_table, savings
from comkd_ray.document import Section
from comkd_ray.figure import NoFigure
from comkd_ray.findings import Findings
from comkd_ray.markup import Html, join, paragraph, table, tag
from comkd_ray.reference_rows import at_own_values, other_keys
from comkd_ray.report_facts import cost_lines
from comkd_ray.report_tables import component_tables, module_table, paired_tables, plain_table, titled
from comkd_ray.run import Run
from comkd_ray.variants import variants


def figure(
    ident: str, make: Callable[[], go.Figure], caption: object, warning: str = "", columns: int = 0
) -> Html:
    """A figure with its data embedded, or the one line why there is none.

    `warning` stands above it; `columns` > 0 keeps that many columns readable: the figure scrolls
    sideways in its own box.
    """
    try:
        data = make().to_json().replace("<", "\\u003c")
    except NoFigure as reason:
        return paragraph(str(reason), class_="none")
    width = f"min-width: {columns * 6.6:.0f}rem" if columns else ""
    spec = Html(f'<script type="application/json">{data}</script>')
    plot = tag("div", spec, class_="plot", id=f"plot-{ident}", style=width)
    above = paragraph(warning, class_="warned") if warning else ""
    return tag("figure", above, tag("div", plot, class_="scroll"), tag("figcaption", caption))


def search_sections(run: Run) -> list[Section]:
    """History, parallel coordinates, importance."""
    space = run.study.search.space if run.study is not None else {}
    arms, scores = run.arms, run.scores
    axes = len(searched_keys(arms)) + 1
    history = figure(
        "history",
        lambda: search_plots.history_plot(search_plots.history_info(arms, space)),
        f"{scores.objective}, by which arms are chosen, in the order in which the search asked for "
        "the arms. Hollow arms left early, with a smaller budget; they never count as best.",
        scores.warning,
    )
    parallel = figure(
        "parallel",
        lambda: search_plots.parallel_plot(search_plots.parallel_info(arms, space)),
        "Full-budget arms, one line each: the stronger and bluer, the higher its score. "
        "\u201coff\u201d marks a key that is not searched under the other values of the arm."
        + " Red dashes: an arm that collapsed or peaked at once."
        * bool(among(arms).flags),
        scores.warning,
        columns=axes,
    )
    return [
        ("history", "Search history", history),
        *_front_sections(run),
        ("parallel", "Parallel coordinates", parallel),
        ("importance", "Importance", _importance(run)),
    ]


def _front_sections(run: Run) -> list[Section]:
    """The front, where the search had two objectives."""
    if run.study is None or len(run.study.search.objectives) < 2:
        return []
    space, objectives = run.study.search.space, run.study.search.objectives
    front = figure(
        "front",
        lambda: front_plot.front_plot(front_plot.front_info(run.arms, space, objectives)),
        f"Full-budget arms by what the search steered by: {' and '.join(objectives)}. No arm is better "
        "than one of the front in both. The best arm of this report is the best by the first alone.",
        run.scores.warning,
    )
    return [("front", "Front", front)]


def _importance(run: Run) -> Html:
    """Bars with what they mean, or why there are none."""
    space = run.study.search.space if run.study is not None else {}
    try:
        info = importance.importance_info(run.arms, space, run.enumerated)
    except NoFigure as reason:
        return paragraph(str(reason), class_="none")
    words = importance.reading(info, run.scores.objective)
    return figure("importance", lambda: importance.importance_plot(info), words, run.scores.warning)


def modules_section(run: Run, found: Findings) -> Section:
    """The 2x2, what differs by seed, and what each component of a full factorial is worth.

    In a grid or a list that searched more than methods and seeds, the four cells hold the arms at the
    study file's own values alone: variants of one method are not one sample.
    """
    has_variants = variants(run.fixed, run.enumerated) is not None
    arms = at_own_values(run.fixed, run.study) if has_variants else run.fixed
    drawn = figure(
        "modules",
        lambda: plots.modules_plot(plots.modules_info(arms)),
        "Every arm is a point; the bar is the mean of the full-budget arms with its 95 % "
        "t-interval (ddof = 1)." + " Test labels took no part in the search." * (not run.scores.on_test),
        run.scores.warning,
    )
    parts: list[Html] = [drawn]
    if has_variants:
        parts.insert(0, paragraph(_OWN_VALUES, class_="caution"))
    elif run.enumerated is None and found.paired and (others := other_keys(arms)):
        parts.append(paragraph(f"Each cell pools arms of every {', '.join(others)}.", class_="caution"))
    full = full_budget(arms)
    if has_modules(arms) and sum(len(of_method(full, cell)) > 0 for cell in module_cells(arms)) > 1:
        title = "Full-budget arms at the study file's own values" if has_variants else "All full-budget arms"
        parts += [titled(f"{title} by module", run.scores), module_table(arms)]
    if found.paired:
        title = f"Paired by seed: each method minus {METHODS[found.baseline]}"
        parts += [titled(title, run.scores), paired_tables(found.paired, run.scores, run.rule)]
    elif found.best is not None:
        parts.append(paragraph(_UNPAIRED if run.enumerated else _UNBALANCED, class_="caution"))
    if (worth := components(run.fixed, run.study, run.enumerated)) is not None:
        parts += [
            titled("What each component is worth", run.scores),
            component_tables(worth, run.scores, run.rule),
        ]
    return "modules", "IFAlign \u00d7 EduAttention", join(parts)


_OWN_VALUES = (
    "The cells hold only arms at the study file's own values, so that they differ by their modules alone; "
    "all others stand under Variants. Paired differences, where there are any, hold every arm that has a "
    "match with the same other values, averaged within a seed."
)
_UNBALANCED = (
    "The arms of these cells were chosen by the search: cells are not balanced and their other values "
    "differ, so a difference between means is no effect of a module. A grid with train.seed in its space "
    "gives paired differences here."
)
_UNPAIRED = (
    "Nothing is paired by seed here: that takes full-budget arms of two methods with equal other values, "
    "one with both modules off, and train.seed in search.space."
)


def method_sections(run: Run) -> list[Section]:
    """Learning curves; accuracy and size."""
    curves = figure(
        "curves",
        lambda: plots.curves_plot(plots.curves_info(run.arms, run.epochs)),
        "One line an arm; pruned arms end early. The loss is a sum of weighted terms, so arms with "
        "other loss weights or temperatures cannot be compared by it.",
        run.scores.warning,
    )
    size = figure(
        "size",
        lambda: cost_plots.size_plot(cost_plots.size_info(run.arms)),
        "Full-budget arms against the parameters they train and those that run at inference (image "
        "tower, prompts, projector, EduAttention). Zero-shot stands at total minus trainable. The "
        "front is drawn after the search, on test scores, to describe; it chose nothing.",
        run.scores.warning,
    )
    return [("curves", "Learning curves", curves), ("size", "Accuracy and size", size)]


def cost_section(run: Run) -> Section:
    """What arms and stages took."""
    stages = run.provenance.get("stages") or {}
    drawn = figure(
        "cost",
        lambda: cost_plots.cost_plot(cost_plots.cost_info(run.trained, stages)),
        "Above, wall time of each arm: its share of the cohort it trained in. Below, wall time of "
        "each stage.",
    )
    lines = [paragraph(line) for line in cost_lines(run.trained, run.provenance)]
    spared = saving_table(savings(run.trained, run.epochs, stages))
    took = cost_table(costs(run.trained, run.enumerated), run.study)
    tables = [
        tag("h3", "What was spared"),
        table(spared.head, spared.rows, words=2, class_="how"),
        tag("h3", "What it took, by arm, variant and seed"),
        plain_table(took),
        paragraph(_DEVICE_SECONDS, class_="caution"),
    ]
    return "cost", "Cost", join([*lines, drawn, *tables])


_DEVICE_SECONDS = (
    "Device-seconds: the column seconds, an arm's share of the wall time of its cohort's epochs (training "
    "and evaluation) while one worker held its devices. An arm that trains beside others is cheaper than it "
    "would be alone; start of processes, teacher and bank are in the stages above."
)
