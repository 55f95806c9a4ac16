"""Predicts a photograph with an exported network: letterbox, ONNX Runtime, drawing. Needs no JAX.

mtl-jax export --weights runs/seq --out exported --format onnx
pip install onnxruntime pillow numpy
python examples/onnx_predict.py exported photo.jpg drawn.png 0.3
"""

import json
import sys
from pathlib import Path

import numpy as np
import onnxruntime
from PIL import Image, ImageDraw


def letterbox(image, height, width):
    """Returns f32[1, height, width, 3] in 0..1, the image between grey bars, its scale and its offset.

    As model.json says under "placement": bilinear, averaged down before where it shrinks to less than half.
    """
    scale = min(height / image.height, width / image.width)
    offset = (width - image.width * scale) / 2, (height - image.height * scale) / 2
    factor = max(1, int(1 / scale))
    shrunk = image.resize([max(1, round(n / factor)) for n in image.size], Image.Resampling.BOX)
    x, y = (after / (before * scale) for after, before in zip(shrunk.size, image.size, strict=True))
    coefficients = x, 0, -offset[0] * x, 0, y, -offset[1] * y  # from the network's input to the image
    placed = shrunk.transform(
        (width, height), Image.Transform.AFFINE, coefficients, Image.Resampling.BILINEAR, fillcolor=(114, 114, 114)
    )
    return np.asarray(placed, np.float32)[None] / 255, scale, np.array(offset * 2, np.float32)


def main(folder, photograph, output, threshold=0.3):
    """Prints the predictions of every task, and draws masks and boxes."""
    description = json.loads((Path(folder) / "model.json").read_text())
    session = onnxruntime.InferenceSession(str(Path(folder) / "model.onnx"), providers=["CPUExecutionProvider"])
    height, width = description["input"]["size"]
    image = Image.open(photograph).convert("RGB")
    pixels, scale, offset = letterbox(image, height, width)
    names = [output.name for output in session.get_outputs()]
    outputs = dict(zip(names, session.run(names, {description["input"]["name"]: pixels}), strict=True))
    for task, entry in description["tasks"].items():
        if entry["kind"] == "segmentation":
            x = np.clip((np.arange(image.width) + 0.5) * scale + offset[0], 0, width - 1).astype(int)
            y = np.clip((np.arange(image.height) + 0.5) * scale + offset[1], 0, height - 1).astype(int)
            mask = outputs[f"{task}/mask"][0][np.ix_(y, x)]
            tint = (mask[..., None] * np.array([83, 141, 199])) & 255
            mixed = np.where(mask[..., None] > 0, (np.asarray(image) + tint) // 2, np.asarray(image))
            image = Image.fromarray(mixed.astype(np.uint8))
            for label in np.unique(mask[mask > 0]):
                print(f"{task} {entry['classes'][label]} {(mask == label).mean():.1%} of the pixels")
        elif f"{task}/probability" in outputs:
            probability = outputs[f"{task}/probability"][0]
            print(f"{task} {entry['classes'][probability.argmax()]} {probability.max():.4f}")
    pen = ImageDraw.Draw(image)
    for task in (name for name, entry in description["tasks"].items() if entry["kind"] == "detection"):
        score, valid = outputs[f"{task}/score"][0], outputs[f"{task}/valid"][0]
        for i in np.flatnonzero(valid & (score >= threshold)):
            name = description["tasks"][task]["classes"][outputs[f"{task}/label"][0][i]]
            box = (outputs[f"{task}/boxes_xyxy"][0][i] - offset) / scale
            print(f"{task} {name} {score[i]:.4f} {' '.join(f'{side:.1f}' for side in box)}")
            pen.rectangle(box.tolist(), outline=(255, 40, 40), width=2)
            pen.text((box[0] + 3, box[1] + 1), f"{name} {score[i]:.2f}", fill=(255, 40, 40))
    image.save(output)


if __name__ == "__main__":
    main(*sys.argv[1:4], *map(float, sys.argv[4:5]))
