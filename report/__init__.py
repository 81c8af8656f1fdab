"""Pictures of what every stage made.

Comes in: a label folder, shards, a run's folder. Goes out: PNG files and one page that
shows them. Reads the stages' outputs and knows none of their insides.
"""
