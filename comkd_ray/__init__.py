"""comkd-ray: ComKD-CLIP distillation as a distributed search and ablation platform."""

__version__ = "0.1.0"
