"""Units of work, and the engines that do them: processes, Ray, SLURM.

In come a function and a row of units; out come their results, in any order, with what failed set aside. This room
knows no data set, label or shard: the rooms that have work to do bring it as a :class:`~olivine.cluster.work.Job`.
"""
