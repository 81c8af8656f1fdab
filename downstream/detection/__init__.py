"""3D detection on KITTI: from a pre-trained trunk to boxes, and from boxes to KITTI's table.

Comes in: scenes (clouds, a camera's calibration, a label file each) and a backbone. Goes out: a trained SECOND, result
files in KITTI's text format, AP. Knows no reader and no devkit.
"""
