"""A model as one module to trace, what it is tried with, and the program that `torch.export` makes of it."""

import numpy as np
import torch
from PIL import Image
from skimage.data import chelsea
from torch import nn

from ..image_processing_focusvit import FocusViTImageProcessor
from ..lay_back import cells_to_pixels
from ..modeling_focusvit import FocusViTForImageClassification
from ..modeling_focusvit_dense import FocusViTForSemanticSegmentation


ExportedModel = FocusViTForImageClassification | FocusViTForSemanticSegmentation
GRAPH_INPUTS = ("images", "pixel_values", "superpixel_ids")
# A graph is traced with two images, since torch takes one for a constant, and tried with another number of them.
_TRACED_BATCH = 2
TRIED_BATCH = 3


class ModelGraph(nn.Module):
    """
    `"logits"` of a classifier or segmenter; of a segmenter `"label_map"` `(batch_size, height, width)`, the class of
    each pixel, too; and `"superpixel_ids"` where they are not given but computed.
    """

    def __init__(self, model: ExportedModel):
        super().__init__()
        self.model = model

    def forward(
        self, pixel_values: torch.Tensor, superpixel_ids: torch.Tensor | None = None
    ) -> dict[str, torch.Tensor]:
        computed = {}
        if superpixel_ids is None and self.model.config.patch_pooling == "superpixel":
            superpixel_ids = self.model.focusvit.compute_superpixel_ids(pixel_values)
            computed["superpixel_ids"] = superpixel_ids
        logits = self.model(pixel_values, superpixel_ids=superpixel_ids).logits
        if isinstance(self.model, FocusViTForSemanticSegmentation):
            # Which classes occur depends on the data, and a graph has no such shapes: all are interpolated.
            size = (pixel_values.shape[-2], pixel_values.shape[-1])
            computed["label_map"] = cells_to_pixels(logits, size, mode="bilinear").argmax(dim=1)
        return {"logits": logits, **computed}


class ImageGraph(nn.Module):
    """[`ModelGraph`] behind what the processor does to an image of the right size."""

    pixel_mean: torch.Tensor
    pixel_std: torch.Tensor

    def __init__(self, model: ExportedModel, image_processor: FocusViTImageProcessor):
        super().__init__()
        self.inner = ModelGraph(model)
        self.white = 1 / image_processor.rescale_factor if image_processor.do_rescale else 1.0
        normalizes = image_processor.do_normalize
        mean, std = image_processor.image_mean, image_processor.image_std
        # No name of an operation: the exporter calls a constant that it computes by the operation's name, and refuses
        # a graph with two constants of one name.
        for name, values, idle in (("pixel_mean", mean, 0.0), ("pixel_std", std, 1.0)):
            channels = torch.tensor(values if normalizes else idle, dtype=torch.float32)
            self.register_buffer(name, channels.view(-1, 1, 1), persistent=False)

    def normalize(self, images: torch.Tensor) -> torch.Tensor:
        """`(batch_size, channels, height, width)` in uint8 to float32."""
        return (images.float() / self.white - self.pixel_mean) / self.pixel_std

    def forward(self, images: torch.Tensor) -> dict[str, torch.Tensor]:
        return self.inner(self.normalize(images))


def example_inputs(
    images_graph: ImageGraph, image_processor: FocusViTImageProcessor, graph_input: str, count: int
) -> dict[str, torch.Tensor]:
    """What the graph takes, of `count` views of a photograph at the size that the processor makes images."""
    model = images_graph.inner.model
    height, width = model.config.image_height_and_width
    photograph = np.asarray(Image.fromarray(chelsea()).resize((width, height)))
    views = [Image.fromarray(np.roll(photograph, 5 * index, axis=1)) for index in range(count)]
    images = torch.from_numpy(np.stack(image_processor.to_levels(views)))
    if graph_input == "images":
        return {"images": images}
    channels = images[:, [channel % 3 for channel in range(model.config.num_channels)]]
    inputs = {"pixel_values": images_graph.normalize(channels)}
    if graph_input == "superpixel_ids":
        inputs["superpixel_ids"] = image_processor.process_levels(images, do_superpixels=True)["superpixel_ids"]
    return inputs


def traced_program(
    graph: nn.Module, inputs: dict[str, torch.Tensor], batch_size: int | None
) -> torch.export.ExportedProgram:
    """The program of a graph for `batch_size` images, or for any number of them, without the paths of this machine."""
    shapes = None
    if batch_size is None:
        batch = torch.export.Dim("batch", min=1)
        shapes = {name: {0: batch} for name in inputs}
        inputs = {name: value[:_TRACED_BATCH] for name, value in inputs.items()}
    program = torch.export.export(graph, (), kwargs=inputs, dynamic_shapes=shapes, strict=False)
    # Stack traces hold the paths of this machine, which nobody else needs.
    for module in program.graph_module.modules():
        for node in module.graph.nodes if isinstance(module, torch.fx.GraphModule) else ():
            node.meta.pop("stack_trace", None)
    return program
