"""Segmentation on real masks: superpixels against grids, peers, and what a pretrained network can teach."""
