"""Grids of runs over switches and seeds: what a study is, its rows, statistics, tables and picture.

Comes in: a study's YAML file and labelled shards. Goes out: one row a run and one table. Knows no data set and no loss:
runs are :func:`~olivine.train.loop.pretrain`, probes and fine-tunings those of ``downstream``.
"""
