"""Pupils of an ImageNet teacher: a dense ViT-Ti/16 and focusvit-tiny on Imagenette, trained on a CPU."""
