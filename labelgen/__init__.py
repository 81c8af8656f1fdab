"""Camera images in, one label map for each image out, in a store with a manifest.

A labeler (foundation models, a folder of ready label maps, or the exact masks of a
synthetic world) turns an image into a map of weak labels in the order of the prompts.
Knows frames and images; must not know LiDAR points, pairs or training.
"""
