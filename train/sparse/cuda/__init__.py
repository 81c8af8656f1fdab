"""Triton kernels for the sparse engine on NVIDIA GPUs: voxel sets, kernel maps, convolution, batch norm with what follows it.

The engine ``triton`` of :mod:`olivine.train.sparse.engines` is made of them; without this folder there is none, and
nothing else changes. ``tiles`` holds every number that was chosen for speed. ``docs/sparse.md`` explains how they work.
"""
