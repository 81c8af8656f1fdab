"""Shards in, checkpoints out: the distillation of images into a sparse 3D backbone.

What comes in is a folder of shards (:mod:`olivine.pairs.shards`) and a settings file; what goes out is a
run folder with checkpoints and metrics. This room knows no data set, no devkit, no labeller and no reader.
"""
