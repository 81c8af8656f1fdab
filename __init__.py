"""OLIVINE: image-to-LiDAR contrastive distillation with labels from visual foundation models."""

__version__ = "0.1.0"
