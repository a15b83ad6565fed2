"""Classify image files with an exported network: python predict_onnx.py model.onnx photo.jpg … (no PyTorch)"""

import json
import sys

import numpy as np
import onnxruntime
from PIL import Image, ImageOps

session = onnxruntime.InferenceSession(sys.argv[1])
metadata = {name: json.loads(text) for name, text in session.get_modelmeta().custom_metadata_map.items()}
side = metadata["side"]
for path in sys.argv[2:]:
    image = Image.open(path)
    image.draft(None, (2 * side, 2 * side))  # decode a large JPEG at a reduced size, as for training
    image = ImageOps.exif_transpose(image)
    if image.mode[0] in "IF":
        sys.exit(f"{path} has more than 8 bits per channel: convert it first")
    if image.has_transparency_data:
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image.convert("RGBA"))
    square = ImageOps.fit(image.convert("RGB"), (side, side), Image.Resampling.BILINEAR)
    [logits] = session.run(["logits"], {"images": np.asarray(square).transpose(2, 0, 1)[None]})[0]
    probabilities = np.exp(logits - logits.max()) / np.exp(logits - logits.max()).sum()
    print(f"{path}: {metadata['classes'][logits.argmax()]} {probabilities.max():.4f}")
