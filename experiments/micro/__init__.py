"""Controlled comparisons at micro scale: Imagenette at 96 px."""
