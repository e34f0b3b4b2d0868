"""FocusViT for Hugging Face Transformers: superpixel tokens and latent attention.

Importing the package registers its classes, so that `AutoModel.from_pretrained` and `pipeline` know them.
"""

from transformers import (
    AutoBackbone,
    AutoConfig,
    AutoImageProcessor,
    AutoModel,
    AutoModelForImageClassification,
    AutoModelForSemanticSegmentation,
)
from transformers.models.auto.modeling_auto import MODEL_FOR_SEMANTIC_SEGMENTATION_MAPPING_NAMES

from .configuration_focusvit import FocusViTConfig
from .conversion.convert import convert_vit_checkpoint
from .image_processing_focusvit import FocusViTImageProcessor
from .modeling_focusvit import FocusViTForImageClassification, FocusViTModel, FocusViTPreTrainedModel
from .modeling_focusvit_dense import FocusViTBackbone, FocusViTForSemanticSegmentation


__version__ = "0.1.0"

AutoConfig.register("focusvit", FocusViTConfig, exist_ok=True)
AutoModel.register(FocusViTConfig, FocusViTModel, exist_ok=True)
AutoModelForImageClassification.register(FocusViTConfig, FocusViTForImageClassification, exist_ok=True)
AutoModelForSemanticSegmentation.register(FocusViTConfig, FocusViTForSemanticSegmentation, exist_ok=True)
AutoBackbone.register(FocusViTConfig, FocusViTBackbone, exist_ok=True)
# The pipeline for segmentation looks into these names alone, which registration does not reach. It would log an error.
MODEL_FOR_SEMANTIC_SEGMENTATION_MAPPING_NAMES["focusvit"] = FocusViTForSemanticSegmentation.__name__
AutoImageProcessor.register(
    FocusViTConfig,
    image_processor_classes={"pil": FocusViTImageProcessor, "torchvision": FocusViTImageProcessor},
    exist_ok=True,
)

__all__ = [
    "FocusViTBackbone",
    "FocusViTConfig",
    "FocusViTForImageClassification",
    "FocusViTForSemanticSegmentation",
    "FocusViTImageProcessor",
    "FocusViTModel",
    "FocusViTPreTrainedModel",
    "__version__",
    "convert_vit_checkpoint",
]
