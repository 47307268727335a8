"""The vision server that one usually gets, to compare with: FastAPI, a lock for each model, one at a time.

The same four models in the stock transformers classes, their stock processors where those work without
torchvision, and elsewhere our own reading of a picture. No batching; SAM 3 sees a picture anew for each of
its prompts; all masks of a prompt are resized at once; answers are lists that FastAPI turns into JSON.
"""

import argparse
import base64
import io
import os
import threading
import time
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import uvicorn
from fastapi import FastAPI
from PIL import Image as Pillow
from pydantic import BaseModel
from torch.nn.functional import interpolate
from transformers.models.bert.tokenization_bert import BertTokenizer
from transformers.models.clip.tokenization_clip import CLIPTokenizer
from transformers.models.dinov3_vit.modeling_dinov3_vit import DINOv3ViTModel
from transformers.models.grounding_dino.image_processing_pil_grounding_dino import (
    GroundingDinoImageProcessorPil,
)
from transformers.models.grounding_dino.modeling_grounding_dino import GroundingDinoForObjectDetection
from transformers.models.grounding_dino.processing_grounding_dino import GroundingDinoProcessor
from transformers.models.sam3.modeling_sam3 import Sam3Model

from core.request import Image
from core.spec import PipelineSpec
from pipelines import depth_anything_networks as depth_networks
from pipelines import depth_anything_pixels, dinov3, sam3_reading
from pipelines.checkpoint import find_checkpoint
from pipelines.options import ModelOptions, Silent
from pipelines.registry import catalog
from pipelines.vision_loading import VisionLoader

Predict = Callable[["Asked", Pillow.Image], Any]


class Asked(BaseModel):
    images: list[str]
    prompts: list[str] = []
    threshold: float = 0.5
    mask_threshold: float = 0.5
    box_threshold: float = 0.4
    text_threshold: float = 0.3


def ours(image: Pillow.Image) -> Image:
    return Image(pixels=image.tobytes(), width=image.width, height=image.height, digest="-")


class Segmenter:
    def __init__(self, folder: Path, spec: PipelineSpec) -> None:
        self.model = Sam3Model.from_pretrained(folder).eval()
        self.tokenizer = CLIPTokenizer.from_pretrained(folder)

    def __call__(self, asked: Asked, image: Pillow.Image) -> Any:
        side = self.model.config.image_size
        found = []
        for index, prompt in enumerate(asked.prompts):
            pixels = sam3_reading.preprocess(ours(image), (side, side))[None]
            words = self.tokenizer(prompt, padding="max_length", max_length=32, return_tensors="pt")
            out = self.model(pixel_values=pixels, **words)
            result = self._instances(out, image, asked)
            found.append({"prompt_index": index, "prompt": prompt, "result": result})
        return found

    def _instances(self, out: Any, image: Pillow.Image, asked: Asked) -> dict[str, Any]:
        """Source: post_process_instance_segmentation of transformers' image_processing_sam3.py."""
        scores = out.pred_logits[0].sigmoid() * out.presence_logits[0].sigmoid()
        kept = scores > asked.threshold
        boxes = out.pred_boxes[0][kept] * torch.tensor([*image.size, *image.size])
        masks = torch.zeros(0, image.height, image.width)
        if kept.any():
            size = (image.height, image.width)
            masks = interpolate(out.pred_masks[0][kept].sigmoid()[None], size, mode="bilinear")[0]
        bits = (masks > asked.mask_threshold).numpy()
        return {
            "scores": scores[kept].tolist(),
            "boxes": boxes.tolist(),
            "masks_rle": [run_lengths(one) for one in bits],
        }


def run_lengths(mask: Any) -> dict[str, Any]:
    pixels = np.concatenate([[0], mask.flatten(order="F").astype(np.uint8), [0]])
    changes = np.flatnonzero(np.diff(pixels))
    counts = np.diff(np.concatenate([[0], changes, [mask.size]])).astype("<u4")
    packed = base64.b64encode(zlib.compress(counts.tobytes())).decode()
    return {"encoding": "rle", "size": list(mask.shape), "counts": packed}


class Detector:
    def __init__(self, folder: Path, spec: PipelineSpec) -> None:
        self.model = GroundingDinoForObjectDetection.from_pretrained(folder).eval()
        pictures = GroundingDinoImageProcessorPil.from_pretrained(folder)
        self.processor = GroundingDinoProcessor(pictures, BertTokenizer.from_pretrained(folder))

    def __call__(self, asked: Asked, image: Pillow.Image) -> Any:
        caption = " ".join(f"{prompt.lower()}." for prompt in asked.prompts)
        inputs = self.processor(images=image, text=caption, return_tensors="pt")
        out = self.model(**inputs)
        (found,) = self.processor.post_process_grounded_object_detection(
            out,
            inputs["input_ids"],
            threshold=asked.box_threshold,
            text_threshold=asked.text_threshold,
            target_sizes=[image.size[::-1]],
        )
        return {
            "scores": found["scores"].tolist(),
            "labels": found["text_labels"],
            "boxes": found["boxes"].tolist(),
        }


class Diver:
    def __init__(self, folder: Path, spec: PipelineSpec) -> None:
        options = ModelOptions(cache_dir=folder.parent)
        loader = VisionLoader(spec, options, Silent(), model_type=("pocket-depth",))
        self.network = depth_networks.load_mono(loader)
        assert spec.vision is not None
        self.entry = spec.vision.entry

    def __call__(self, asked: Asked, image: Pillow.Image) -> Any:
        pixels = depth_anything_pixels.preprocess_v3(ours(image), self.entry(image.size))
        depth, sky = self.network(pixels[None])
        filled = depth_networks.fill_sky(depth[0], sky[0])
        whole = interpolate(filled[None, None], image.size[::-1], mode="bilinear")[0, 0].numpy()
        grey = (whole - whole.min()) / max(float(np.ptp(whole)), 1e-9) * 255
        out = io.BytesIO()
        Pillow.fromarray(grey.astype(np.uint8)).save(out, "PNG")
        return base64.b64encode(out.getvalue()).decode()


class Feeler:
    def __init__(self, folder: Path, spec: PipelineSpec) -> None:
        self.model = DINOv3ViTModel.from_pretrained(folder).eval()

    def __call__(self, asked: Asked, image: Pillow.Image) -> Any:
        side = self.model.config.image_size
        out = self.model(pixel_values=dinov3.preprocess(ours(image), (side, side))[None])
        return {
            "last_hidden_state": out.last_hidden_state.tolist(),
            "pooler_output": out.pooler_output.tolist(),
        }


KINDS: dict[str, tuple[str, Callable[[Path, PipelineSpec], Predict], str]] = {
    "sam3": ("pocket-sam3", Segmenter, "results"),
    "grounding-dino": ("pocket-grounding-dino", Detector, "results"),
    "depth-anything": ("pocket-depth", Diver, "depth_data"),
    "dinov3": ("pocket-dinov3", Feeler, "features"),
}


def application(cache: Path) -> FastAPI:
    app = FastAPI()

    @app.get("/ready")
    def ready() -> dict[str, str]:
        return {"status": "ready"}

    for slug, (name, kind, field) in KINDS.items():
        spec = catalog(name).default
        predict = kind(find_checkpoint(spec, ModelOptions(cache_dir=cache)), spec)
        app.post(f"/inference/{slug}")(answering(predict, name, field))
    return app


def answering(predict: Predict, name: str, field: str) -> Callable[[Asked], dict[str, Any]]:
    """In FastAPI's threads, so that one model does not wait for another."""
    lock = threading.Lock()

    def answer(asked: Asked) -> dict[str, Any]:
        started = time.monotonic()
        images = [Pillow.open(io.BytesIO(base64.b64decode(one))).convert("RGB") for one in asked.images]
        with lock, torch.inference_mode():
            found = [predict(asked, image) for image in images]
        told = found if field == "results" else found[0]
        return {field: told, "model_id": name, "processing_time": time.monotonic() - started}

    return answer


def main() -> None:
    arguments = argparse.ArgumentParser()
    arguments.add_argument("--port", type=int, default=int(os.environ.get("API_PORT", "8000")))
    arguments.add_argument("--cache", type=Path, default=Path(os.environ.get("CACHE_DIR", "out")))
    options = arguments.parse_args()
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    uvicorn.run(application(options.cache), host="127.0.0.1", port=options.port, log_level="warning")


if __name__ == "__main__":
    main()
