"""Clouds, calibration and label maps in, Zarr shards of point-pixel pairs out, and back.

Everything that needs doing once per frame is done here: projection, distance density,
class counts, pictures at the size the trainer crops from. Knows no data set (that is the
readers' business) and no network; reading shards back imports neither zarr nor torch.
"""
