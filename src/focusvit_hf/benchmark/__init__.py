"""Times FocusViT beside other models, from an encoded image to its class, and reports what it found."""
