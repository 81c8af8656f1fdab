"""Frozen image encoders, one file each, found by name; :mod:`olivine.train.encoder` is the contract."""
