"""A procedural street world, the sensors that look at it, and writers in the formats of real data sets.

In: a seed and sizes. Out: a folder that nuscenes-devkit or pykitti reads like the real thing, with exact
masks of every image besides. It must not know labellers, pairs or networks: whatever learns from it
reads it through the same readers as real data.
"""
