"""Outlines of figures: superpixels against a regular grid."""
