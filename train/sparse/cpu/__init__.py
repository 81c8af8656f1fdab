"""Compiled loops for the sparse engine on CPUs: convolution, batch norm with what follows it, search of keys.

Arrays and kernel maps come in through :mod:`olivine.train.sparse.loops` alone, and results go out with the values of
the general path but for rounding. ``docs/sparse-cpu.md`` explains how they work. Nothing here knows sparse tensors,
modules or engines.
"""
