"""The study file: strict, frozen models from YAML to row.

One word an idea: a YAML key, a field here, a parquet column and an axis label are the same dotted
word (`loss.temperature`). An unknown key or a wrong type is refused with its place and the nearest
known name. PAPER rows named in the comments are those of `docs/method.md`.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from comkd_ray.search_space import Dimension, Scalar, Section, count, spread

SEEDS = 2**31
MOST_SEEDS = 1000
"""Seeds of an ablation that are taken for meant."""


DataSet = Literal[
    "folder", "split_file",
    "imagenet", "caltech101", "oxford_pets", "stanford_cars", "oxford_flowers", "food101",
    "fgvc_aircraft", "sun397", "dtd", "eurosat", "ucf101",
    "imagenet_v2", "imagenet_sketch", "imagenet_a", "imagenet_r",
]  # fmt: skip


class Data(Section):
    """Which images, cut into which parts."""

    dataset: DataSet = "folder"
    """`folder`: any folder of class folders; `split_file`: any with a split file in CoOp's form (6.16)."""
    root: str
    """Folder of the data set; `assets:NAME` is one that ships with the package."""
    split: str | None = None
    """Split file inside the root, for `dataset: split_file` only."""
    make_split: bool = False
    """Where the published split file is missing, draw a split of our own (6.17); it is not comparable."""
    side: int = Field(256, ge=16, le=1024)
    """Side in pixels of the square that every image is stored as."""
    pixels: Literal["store", "stream", "auto"] = "auto"
    """`store`: decoded once, to the cache; `stream`: from their files at every use; the same numbers.

    `auto` stores what takes less than half of the free disk and of the memory, and goes on as it began.
    """
    shots: int = Field(16, ge=1)
    """Labelled images of each class that the teacher learns from."""
    views: int | Literal["epochs"] = "epochs"
    """Seeded augmentations an image; `epochs` gives every epoch its own, as online training does."""
    split_seed: int = Field(1, ge=0, lt=SEEDS)
    """Draws the few shots, and the parts of a folder that comes without them."""
    skip_broken: bool = False
    """Leave out images that cannot be decoded (they are counted) instead of stopping."""

    @model_validator(mode="after")
    def _consistent(self) -> Data:
        if isinstance(self.views, int) and self.views < 1:
            raise ValueError("views must be at least 1, or 'epochs'")
        if (self.split is not None) != (self.dataset == "split_file"):
            raise ValueError("split belongs to dataset: split_file, and that needs it")
        return self


class Tower(Section):
    """A CLIP model of open_clip, with its weights frozen."""

    model: str
    """open_clip name (`ViT-B-16`), `local-dir:PATH`, `hf-hub:ID` or `assets:NAME`."""
    pretrained: str | None = None
    """open_clip tag or path of a weights file; None for a model that carries its weights."""
    image_size: int | None = Field(None, ge=16, le=1024)
    """Side in pixels that the image tower sees; None is the size the model names."""
    prompt_length: int = Field(4, ge=0)
    """Learnable tokens a layer (2.5); 0 for none. Only on towers that are a ViT."""
    prompt_depth: int = Field(9, ge=1)
    """Layers that receive fresh prompt tokens, the input included (2.5)."""


class Teacher(Tower):
    """Stage I: the large CLIP, prompted and tuned on a few labelled images (1.9, 2.7, 2.9, 3.14)."""

    text_prompt_length: int = Field(4, ge=1)
    text_prompt_depth: int = Field(9, ge=1)
    context: str = "a photo of a"
    """Words that initialise the text prompt (2.7)."""
    epochs: int = Field(20, ge=0)
    """0 keeps the zero-shot teacher."""
    batch_size: int = Field(8, ge=1)
    lr: float = Field(0.005, gt=0)
    momentum: float = Field(0.9, ge=0, lt=1)
    weight_decay: float = Field(5e-4, ge=0)
    text_l1_weight: float = Field(25.0, ge=0)
    """Pulls text features to those without prompts; all three weights 0 is plain cross-entropy (2.9)."""
    image_l1_weight: float = Field(10.0, ge=0)
    """Pulls image features to those without prompts (2.9)."""
    logit_kl_weight: float = Field(1.0, ge=0)
    """Pulls predictions to the zero-shot ones (2.9)."""
    keep: Literal["average", "best", "last"] = "average"
    """Final prompts: a Gaussian average over epochs (2.9), the best epoch on validation, or the last."""
    average_mean: float = 15.0
    """Epoch in the middle of the average, for `keep: average` (2.9, 3.15)."""
    average_std: float = Field(1.0, gt=0)
    """Standard deviation of the average, in epochs (2.9, 3.15)."""
    seed: int = Field(1, ge=0, lt=SEEDS)
    """Draws the initial prompts and the order of the images."""

    @model_validator(mode="after")
    def _mean_within_epochs(self) -> Teacher:
        averages = self.keep == "average" and self.epochs > 0
        if averages and not 1 <= self.average_mean <= self.epochs:
            raise ValueError(
                f"average_mean: {self.average_mean:g} lies outside epochs 1 to {self.epochs};"
                " move it inside, or set keep to best or last"
            )
        return self


class Student(Tower):
    """Stage II: the small CLIP, its prompts, projector and EduAttention (2.4-2.6, 1.3-1.6)."""

    ifalign: bool = True
    edu_attention: bool = True
    attention_scale: float | Literal["sqrt_width"] = 1.0
    """C of softmax(Q K^T / C) (1.15)."""
    projector_layers: Literal[1, 2, 3] = 2
    align_axis: Literal["batch", "width"] = "batch"
    """Statistics over the images of a batch, or over the width of each image (1.10)."""
    align_reduction: Literal["sum", "mean"] = "sum"
    """L1 over the width as a sum or a mean (1.11)."""
    align_features: Literal["normalized", "raw"] = "normalized"
    """IFAlign sees features after or before L2 normalisation (1.12)."""
    attention_keys: Literal["all", "evaluated"] = "all"
    """At evaluation, keys and values are all classes or the evaluated half (1.16)."""
    attention_layers: Literal["separate", "shared"] = "separate"
    """Three fully connected layers, or one for Q, K and V (1.14)."""
    alpha: Literal["scalar", "vector"] = "scalar"
    """Fusion weight: one number, or one a dimension (1.18)."""
    renormalize: bool = True
    """L2-normalise the fused feature before the logits (1.17)."""

    @model_validator(mode="after")
    def _positive_scale(self) -> Student:
        if isinstance(self.attention_scale, float) and self.attention_scale <= 0:
            raise ValueError("attention_scale must be above 0")
        return self


class Loss(Section):
    """L = kd_weight * T^2 * KL(teacher || student) + align_weight * (mean term + variance term)."""

    temperature: float = Field(1.0, gt=0)
    kd_weight: float = Field(1.0, ge=0)
    """Multiplies the batch mean of KL; PromptKD's W divides by classes too: ours = W / N (3.7)."""
    align_weight: float = Field(1.0, ge=0)


class Train(Section):
    """Optimiser of the student: SGD, schedule of PAPER 3.4."""

    epochs: int = Field(20, ge=1)
    batch_size: int = Field(8, ge=2)
    lr: float = Field(0.005, gt=0)
    warmup_lr: float = Field(1e-5, gt=0)
    """Constant rate of the first epoch (3.4)."""
    momentum: float = Field(0.9, ge=0, lt=1)
    weight_decay: float = Field(5e-4, ge=0)
    precision: Literal["mixed", "float16"] = "mixed"
    """`mixed`: float32 weights, bfloat16 autocast on a GPU, float32 on a CPU.

    `float16`: as PromptKD (3.8), emulated in float32 on any device. The weights of projector and
    EduAttention, their gradients, momentum and updates are rounded to float16 in every step, and so
    are prompts, features, activations of these layers and logits in use, with their gradients. No
    loss scaling. Prompts, BatchNorm and alpha are stored, and the frozen tower runs, in float32.
    """
    seed: int = Field(1, ge=0, lt=SEEDS)
    """Draws the initial prompts and layers and the order of the images."""


class Halving(Section):
    """Asynchronous successive halving: the rungs are min_epochs * eta^k."""

    eta: int = Field(3, ge=2)
    min_epochs: int = Field(2, ge=1)


Objective = Literal["objective", "trainable_parameters", "total_parameters", "seconds"]
"""Columns that a search can go by: the protocol's objective is maximised, all others are minimised."""


class Search(Section):
    """How arms are chosen."""

    sampler: Literal["tpe", "random", "gp", "qmc", "nsga2", "grid", "list"] = "tpe"
    """`tpe`, `random`, `gp`, `nsga2`: Optuna's; `qmc`: a scrambled Sobol sequence (`samplers.py`).

    `grid`: every cell of the space; `list`: every arm of `first`, in every cell of the space.
    """
    objectives: tuple[Objective, ...] = Field(("objective",), max_length=2)
    """What the sampler steers by: the protocol's objective, or that against size or time."""
    arms: int | None = Field(None, ge=1)
    """Arms to train; None is right for a grid and a list, which know their own size."""
    arms_per_trial: int | Literal["auto"] = 8
    """Arms trained in lockstep on one frozen backbone: one Tune trial.

    `auto`: as many as fit into memory, which is probed once, and keep every slot busy; `cohort_size.py`.
    """
    startup_arms: int = Field(10, ge=0)
    """Arms that have to end before tpe or gp models the space; a generation of nsga2.

    Until then arms come from a scrambled Sobol sequence.
    """
    seed: int = Field(0, ge=0, lt=SEEDS)
    halving: Halving | None = None
    first: tuple[dict[str, Scalar], ...] = ()
    """Named arms, as overrides: trained before the sampler is asked, or the arms of a list."""
    space: dict[str, Dimension] = Field(default_factory=dict)
    """What is searched; may be left out only for a list."""

    @model_validator(mode="after")
    def _arms_in_a_cohort(self) -> Search:
        if self.arms_per_trial != "auto" and self.arms_per_trial < 1:
            raise ValueError("arms_per_trial must be at least 1, or 'auto'")
        return self

    @model_validator(mode="after")
    def _consistent_objectives(self) -> Search:
        if "objective" not in self.objectives or len(set(self.objectives)) < len(self.objectives):
            raise ValueError("objectives: `objective` has to be one of them, and none stands twice")
        if len(self.objectives) > 1 and self.halving is not None:
            raise ValueError("halving goes by one value; with several objectives, leave it out")
        return self

    @property
    def is_asked(self) -> bool:
        """Whether anything is searched: a file for `comkd-ray ablate` may do without."""
        return bool(self.space or self.first)

    @property
    def is_enumerated(self) -> bool:
        """Whether all arms are known beforehand, so that no sampler is asked."""
        return self.sampler in ("grid", "list") or self.is_exhausted

    @property
    def is_exhausted(self) -> bool:
        """Whether a sampler's space is finite and has no more cells than `arms`: each is trained once."""
        if self.sampler in ("grid", "list") or self.arms is None or not self.space:
            return False
        cells = count(self.space)
        return cells is not None and cells <= self.arms


class Ablate(Section):
    """Which settings `comkd-ray ablate` compares, each with every seed: `designs.py`."""

    design: Literal["factorial", "leave_one_out", "add_one_in", "one_knob", "fractional"]
    factors: dict[str, tuple[Scalar, ...]] = Field(min_length=1)
    """Key to its levels: the first is off, the last on, where a design needs that.

    `{float: [low, high], log: true, count: 9}` is short for 9 evenly spaced levels.
    """
    seeds: int | tuple[int, ...] = 8
    """Values of train.seed that every setting is trained with; n is 1 to n."""
    materials: dict[str, dict[str, Scalar | None]] = Field(default_factory=dict)
    """Name to the keys that differ from the file's: another data set, another draw of the shots, another
    teacher. Each is an ablation of its own. Empty: the file's own alone.
    """
    material: str | None = None
    """Set in the run directory of one of them: which."""
    max_seeds: int | None = Field(None, ge=2, le=MOST_SEEDS)
    """Set by `--until-decided`: claims that are open after `seeds` get more, up to so many."""
    start: str | None = None
    """Set by `--from`: run and arm whose searched values are this study's own."""
    retune: int | None = Field(None, ge=1)
    """Set by `--retune`: arms that each setting's own values were searched with."""
    retuned: tuple[dict[str, Scalar], ...] = ()
    """What that found: each setting's factors and its re-tuned values, in the order of the design."""

    @field_validator("factors", mode="before")
    @classmethod
    def _spread(cls, factors: Any) -> Any:
        if not isinstance(factors, dict):
            return factors
        given = {key: spread(key, one) if isinstance(one, dict) else one for key, one in factors.items()}
        return {key: tuple(one) if isinstance(one, list) else one for key, one in given.items()}

    @field_validator("factors")
    @classmethod
    def _levels(cls, factors: dict[str, tuple[Scalar, ...]]) -> dict[str, tuple[Scalar, ...]]:
        for key, levels in factors.items():
            if len({(isinstance(level, bool), level) for level in levels}) < max(2, len(levels)):
                raise ValueError(f"{key}: a factor needs two levels or more, and none twice")
        return factors

    @model_validator(mode="after")
    def _two_seeds(self) -> Ablate:
        if isinstance(self.seeds, int) and self.seeds > MOST_SEEDS:
            raise ValueError(f"seeds: {self.seeds:,} are more than {MOST_SEEDS:,}")
        seeds = self.first_seeds
        if self.max_seeds is not None and self.max_seeds < len(seeds):
            raise ValueError(f"max_seeds: {self.max_seeds} are fewer than the {len(seeds)} of seeds")
        if len(seeds) < 2 or len(set(seeds)) < len(seeds):
            raise ValueError("seeds: a test needs two seeds or more, and none twice")
        if not all(0 <= seed < SEEDS for seed in (*seeds, *self.seed_values)):
            raise ValueError(f"seeds: a seed lies from 0 to {SEEDS - 1}")
        return self

    @property
    def direction(self) -> Literal["above", "below"]:
        """What is claimed of every setting but the first: without a part it scores below, else above."""
        return "below" if self.design == "leave_one_out" else "above"

    @property
    def first_seeds(self) -> tuple[int, ...]:
        """Values of train.seed that every setting is trained with, in ascending order as in the report.

        The p of a wager depends on the order: it is one everywhere.
        """
        return tuple(range(1, self.seeds + 1)) if isinstance(self.seeds, int) else tuple(sorted(self.seeds))

    @property
    def seed_values(self) -> tuple[int, ...]:
        """The same, and after them those that open claims may add: the next whole numbers."""
        first, last = self.first_seeds, max(self.first_seeds)
        more = 0 if self.max_seeds is None else max(0, self.max_seeds - len(first))
        return (*first, *range(last + 1, last + 1 + more))


class Compute(Section):
    """What a cohort takes."""

    workers: int | Literal["auto"] = "auto"
    """0: in the Tune actor itself; N: a Ray Train group of N; auto: 0 on a CPU, else 1."""
    cpus: float = Field(2, gt=0)
    """CPUs a cohort (a worker of it) holds; also its torch threads."""
    gpus: float = Field(0, ge=0)
    """GPUs a cohort (a worker of it) holds."""
    retries: int = Field(1, ge=0)
    """Times a cohort is started again after its process or node died."""


class Study(Section):
    """One YAML file, one run directory, one Optuna study."""

    study: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    note: str = ""
    """Shown at the head of the report."""
    protocol: Literal["base_to_novel", "cross_dataset", "domain_generalization", "all_classes"] = (
        "base_to_novel"
    )
    """Who learns from what and where it is tested: `protocols.py`."""
    selection: Literal["strict", "promptkd"] = "strict"
    """`strict` never sees a test label; `promptkd` takes the best epoch on the test set (5.12)."""
    data: Data
    """What the student is distilled on and tested on."""
    source: Data | None = None
    """What the teacher learns on, for cross_dataset and domain_generalization."""
    teacher: Teacher
    student: Student
    loss: Loss = Loss()
    train: Train = Train()
    search: Search = Search()
    ablate: Ablate | None = None
    compute: Compute = Compute()
