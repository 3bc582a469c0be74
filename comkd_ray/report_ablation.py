"""The sections that only an ablation has: curves of its knobs, and effects of its factors."""

from __future__ import annotations

from comkd_ray.config import Study
from comkd_ray.document import Section
from comkd_ray.knob_plots import knob_info, knob_plot
from comkd_ray.main_effects import further_effects
from comkd_ray.markup import join, paragraph
from comkd_ray.report_figures import figure
from comkd_ray.report_tables import plain_table, titled
from comkd_ray.retuned import side_by_side
from comkd_ray.retuned_plots import retuned_plot
from comkd_ray.run import Run
from comkd_ray.tables import effects_notes, effects_of, retuned_table


def ablation_sections(run: Run) -> list[Section]:
    """What the design of an ablation asks for; nothing in other studies."""
    study = run.study
    if study is None or study.ablate is None:
        return []
    knobs = _knobs(run, study) if study.ablate.design == "one_knob" else []
    return [*_retuned(run, study), *knobs, *_effects(run)]


def _retuned(run: Run, study: Study) -> list[Section]:
    """The effect of every setting at fixed and at re-tuned knobs, side by side."""
    found = side_by_side(run.arms, study, run.rule)
    if found is None:
        return []
    assert study.ablate is not None
    drawn = figure(
        "retuned",
        lambda: retuned_plot(found, run.scores.name),
        f"Each setting minus {found.reference}, by seed. Rings: all at the study's own knobs, which may "
        "suit one setting more than another. Dots: each at the knobs that its own search of "
        f"{study.ablate.retune} arms found, the reference too. The bars are 95 % t-intervals over seeds.",
        run.scores.warning,
    )
    values = ", ".join(f"{key} {value}" for key, value in found.reference_values) or "its own values"
    notes = [
        f"At re-tuned knobs {found.reference} has {values}. Every search had the same budget, began at the "
        "study's own values, used a seed that is none of these, and chose by "
        f"{run.scores.objective}. The intervals are over the seeds of the arms: they do not hold the luck of "
        "one search. Each kind of knobs is a family of claims.",
    ]
    lines = [paragraph(line, class_="caution") for line in notes]
    title = titled("Fixed and re-tuned knobs, side by side", run.scores)
    table = plain_table(retuned_table(found, run.scores))
    return [("retuned", "Re-tuned", join([drawn, title, table, *lines]))]


def _knobs(run: Run, study: Study) -> list[Section]:
    """A curve for every factor."""
    assert study.ablate is not None
    drawn = [
        figure(
            f"knob-{place}",
            lambda key=key: knob_plot(knob_info(run.fixed, study, key)),  # type: ignore[misc]
            f"{run.scores.name} over {key}, all other values the study's own. The bar is the 95 % t-interval "
            "over seeds (three or more); a faint line is one seed. The best mean was picked for being high: "
            "of several values about equally good one is always best.",
            run.scores.warning,
        )
        for place, key in enumerate(study.ablate.factors)
    ]
    return [("knobs", "Curves", join(drawn))]


def _effects(run: Run) -> list[Section]:
    """Effects of a factorial or a fraction, where those of all its factors do not stand below already."""
    found = further_effects(run.fixed, run.study, run.enumerated)
    if not found:
        return []
    notes = [paragraph(line, class_="caution") for line in effects_notes(run.rule)]
    table = plain_table(effects_of(found, run.scores))
    return [("effects", "Effects", join([titled("What each factor is worth", run.scores), table, *notes]))]
