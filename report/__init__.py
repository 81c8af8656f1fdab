"""One page, and pictures, of what every stage made.

Comes in: a label folder, shards, a run's folder, a study's. Goes out: an HTML file that needs nothing beside it, and PNG
files. Reads the stages' outputs and knows none of their insides.
"""
