"""PP-OCR: the lines of text that a detector finds, read by a recognizer. Needs the extra `ocr`."""

from typing import Any

import cv2
import numpy as np
import torch
from jaxtyping import Float, UInt8
from transformers import (
    AutoImageProcessor,
    AutoModelForObjectDetection,
    AutoModelForTextRecognition,
)

from ._weights import expanded, loading, pretrained

TALL = 1.5
"""A line this many times higher than wide is read from below to above, as PaddleOCR does."""


class Reader:
    """Both networks in fp32: they are small, and a threshold is applied to what one says."""

    def __init__(self, detector: str, recognizer: str, device: torch.device | str) -> None:
        with loading("ocr.detector", detector):
            self.find_inputs: Any = AutoImageProcessor.from_pretrained(expanded(detector))
            self.find = pretrained(AutoModelForObjectDetection, detector, device, torch.float32)
        with loading("ocr.recognizer", recognizer):
            self.read_inputs: Any = AutoImageProcessor.from_pretrained(expanded(recognizer))
            self.read = pretrained(AutoModelForTextRecognition, recognizer, device, torch.float32)

    @torch.no_grad()
    def texts(self, arrays: list[UInt8[np.ndarray, "H W 3"]]) -> list[str]:
        """What stands in each picture, its lines joined by spaces."""
        inputs = self.find_inputs(images=arrays, return_tensors="pt").to(self.find.device)
        sizes = inputs.pop("target_sizes")
        found = self.find_inputs.post_process_object_detection(
            self.find(**inputs), target_sizes=sizes
        )
        texts = []
        for array, lines in zip(arrays, found, strict=True):
            boxes = lines["boxes"].cpu().numpy().astype(np.float32).reshape(-1, 4, 2)
            texts.append(" ".join(self.line(cut(array, box)) for box in in_reading_order(boxes)))
        return texts

    def line(self, array: UInt8[np.ndarray, "H W 3"]) -> str:
        """By itself: the processor squeezes all lines of a batch to the shape of the widest."""
        inputs = self.read_inputs(images=array, return_tensors="pt").to(self.read.device)
        return self.read_inputs.post_process_text_recognition(self.read(**inputs))[0]["text"]


def cut(
    array: UInt8[np.ndarray, "H W 3"], box: Float[np.ndarray, "4 2"]
) -> UInt8[np.ndarray, "h w 3"]:
    """The box (corners x, y from the top left, clockwise) straightened to a rectangle.

    It is turned upright if TALL.
    """
    edges = np.linalg.norm(np.roll(box, -1, axis=0) - box, axis=1)
    width, height = (max(int(max(edges[i], edges[i + 2])), 1) for i in (0, 1))
    corners = np.array([[0, 0], [width, 0], [width, height], [0, height]], np.float32)
    matrix = cv2.getPerspectiveTransform(box, corners)
    straight = cv2.warpPerspective(
        array, matrix, (width, height), flags=cv2.INTER_CUBIC, borderMode=cv2.BORDER_REPLICATE
    )
    return np.ascontiguousarray(np.rot90(straight)) if height >= TALL * width else straight


def in_reading_order(boxes: Float[np.ndarray, "N 4 2"]) -> list[Float[np.ndarray, "4 2"]]:
    """From above to below; boxes whose middles differ by under half a height go left to right."""
    lines: list[list[np.ndarray]] = []
    for box in sorted(boxes, key=lambda box: box[:, 1].mean()):
        first = lines[-1][0] if lines else box
        if lines and box[:, 1].mean() - first[:, 1].mean() < np.ptp(first[:, 1]) / 2:
            lines[-1].append(box)
        else:
            lines.append([box])
    return [box for line in lines for box in sorted(line, key=lambda box: box[:, 0].mean())]
