"""From a checkpoint and shards with point labels to scores.

Comes in: a pre-trained backbone (or random weights) and shards. Goes out: per-class IoU
and mean IoU as JSON and tables. Knows no data set, no devkit and no labeller.
"""
