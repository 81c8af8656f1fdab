"""From a checkpoint and shards with point labels to scores, predictions and weights for others.

Comes in: a pre-trained backbone (or random weights) and shards. Goes out: IoU as JSON and tables, predictions in the
benchmarks' formats, fine-tuned networks, files in other code bases' layouts. Knows no data set, no devkit and no
labeller.
"""
