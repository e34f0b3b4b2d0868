"""Converted ViTs: accuracy against cost, at once and after a fine-tune."""
