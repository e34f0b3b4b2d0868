"""Shows what the answer for an image rests on."""
