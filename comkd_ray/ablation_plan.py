"""What an ablation is, before anything runs: its design, its cells, its seeds, and what they can show."""

from __future__ import annotations

from collections.abc import Sequence

from comkd_ray import planner, sequential
from comkd_ray.config import Ablate, Study
from comkd_ray.designs import count_claims, settings
from comkd_ray.fractional import fraction, in_words
from comkd_ray.ledger import Shared
from comkd_ray.words import counted, shown

VARIES = (
    "train.seed draws the initial prompts, projector and EduAttention, and the order of the images; arms of "
    "one seed share all of these and every view. Few shots (data.split_seed) and teacher (teacher.seed) "
    "are the same in all arms: another draw is another material, under ablate.materials"
)
"""What the seeds of an ablation vary, and what they do not."""


def describe(study: Study, cells: int, done: int, shared: Shared) -> list[tuple[str, str]]:
    """(what, in words) of a compiled ablation. cells: its distinct arms; done: those with a record."""
    block = study.ablate
    assert block is not None
    taken = shared.in_words(cells)
    count = ("up to " if block.max_seeds is not None else "") + counted(cells, "arm")
    lines = [
        ("design", _design(study, block)),
        ("factors", "; ".join(f"{key}: {_listed(levels)}" for key, levels in block.factors.items())),
        ("cells", count + f", {done} with a record" * bool(done) + f"; {taken}" * bool(taken)),
        ("seeds", _seeds(block)),
        ("a seed varies", VARIES),
    ]
    run, _, arm = (block.start or "").partition("/")
    return lines + ([("starts from", f"arm {arm} of {run}, its best")] if arm else [])


def _design(study: Study, block: Ablate) -> str:
    count = counted(len(settings(study)), "setting")
    against = {
        "factorial": "each against the first levels of all factors",
        "leave_one_out": "each factor off alone, against all on; claimed is that it then scores below",
        "add_one_in": "each factor on alone, against all off",
        "one_knob": "each level alone, against the study's own values",
        "fractional": "main effects of all factors",
    }[block.design]
    words = f"{block.design}: {count}, {against}"
    if block.design != "fractional":
        return words
    names = [key.rpartition(".")[2] for key in block.factors]
    return f"{words}; {in_words(fraction(len(names)), names)}"


def _seeds(block: Ablate) -> str:
    words = f"{counted(len(block.first_seeds), 'seed')}: {_listed(block.first_seeds)}"
    if block.max_seeds is None:
        return words
    return f"{words}; then one more at a time, where a claim is open, up to {block.max_seeds}"


def _listed(values: Sequence[object]) -> str:
    return ", ".join(map(shown, values))


def can_find(study: Study) -> str:
    """What the seeds can show."""
    block = study.ablate
    assert block is not None
    claims = count_claims(study)
    if block.max_seeds is not None:
        fewest = sequential.fewest_seeds(claims)
        words = f"up to {counted(block.max_seeds, 'seed')}, {counted(claims, 'claim')}: every look counted"
        if fewest > block.max_seeds:
            return f"{words}; nothing can be decided, {fewest} seeds could"
        return f"{words}; a claim whose differences are all alike is decided after {fewest} seeds"
    return planner.foretell(planner.plan(len(block.first_seeds), claims))
