"""
Writes a model as one graph for ONNX Runtime or `torch.export`.

A folder by [`export_model`] needs neither this package nor torch. For the graph `"images"` in ONNX:

```python
import json

import numpy as np
import onnxruntime
from PIL import Image, ImageOps

settings = json.load(open("exported/preprocessor_config.json"))
labels = json.load(open("exported/config.json"))["id2label"]
session = onnxruntime.InferenceSession("exported/model.onnx")

# Upright, 8-bit, transparency laid over white: what the image processor makes of a file.
image = ImageOps.exif_transpose(Image.open("cat.png"))
if image.mode.startswith("I;16"):
    image = Image.fromarray(np.rint(np.asarray(image) / 257).astype(np.uint8))
image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image.convert("RGBA")).convert("RGB")

size = (settings["size"]["width"], settings["size"]["height"])
image = image.resize(size, settings["resample"])
images = np.asarray(image).transpose(2, 0, 1)[None]  # (1, 3, height, width) uint8
(logits,) = session.run(["logits"], {"images": images})
print(labels[str(logits[0].argmax())])
```

SLIC in the graph gives the maps of the processor, bit for bit, where float32 products are exact: on CUDA ONNX Runtime
has to be told so, `providers=[("CUDAExecutionProvider", {"use_tf32": 0})]`.
"""

from .folder import export_model
from .runtime import OnnxImageClassifier, OnnxImageSegmenter


__all__ = ["OnnxImageClassifier", "OnnxImageSegmenter", "export_model"]
