"""Pre-training methods, one file each, found by name; :mod:`olivine.train.method` is the contract."""
