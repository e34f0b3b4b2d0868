"""FocusViT for Hugging Face Transformers: superpixel tokens and latent attention.

Importing the package registers its classes, so that `AutoModel.from_pretrained` and `pipeline` know them.
"""

from transformers import AutoConfig, AutoImageProcessor, AutoModel, AutoModelForImageClassification

from .configuration_focusvit import FocusViTConfig
from .conversion.convert import convert_vit_checkpoint
from .image_processing_focusvit import FocusViTImageProcessor
from .modeling_focusvit import FocusViTForImageClassification, FocusViTModel, FocusViTPreTrainedModel


__version__ = "0.1.0"

AutoConfig.register("focusvit", FocusViTConfig, exist_ok=True)
AutoModel.register(FocusViTConfig, FocusViTModel, exist_ok=True)
AutoModelForImageClassification.register(FocusViTConfig, FocusViTForImageClassification, exist_ok=True)
AutoImageProcessor.register(
    FocusViTConfig,
    image_processor_classes={"pil": FocusViTImageProcessor, "torchvision": FocusViTImageProcessor},
    exist_ok=True,
)

__all__ = [
    "FocusViTConfig",
    "FocusViTForImageClassification",
    "FocusViTImageProcessor",
    "FocusViTModel",
    "FocusViTPreTrainedModel",
    "__version__",
    "convert_vit_checkpoint",
]
