"""Makes a FocusViT of a trained ViT, DeiT or DINOv2."""

from .convert import convert_vit_checkpoint


__all__ = ["convert_vit_checkpoint"]
