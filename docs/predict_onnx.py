"""Classify image files with an exported network, without PyTorch.

pip install onnxruntime pillow
python predict_onnx.py model.onnx photo.jpg folder/*.png > labels.csv
"""

import contextlib
import csv
import json
import sys

import numpy as np
import onnxruntime
from PIL import Image, ImageOps

if len(sys.argv) < 3:
    sys.exit(__doc__)
session = onnxruntime.InferenceSession(sys.argv[1])
metadata = {name: json.loads(text) for name, text in session.get_modelmeta().custom_metadata_map.items()}
side = metadata["side"]
table, problems = csv.writer(sys.stdout, lineterminator="\n"), []
table.writerow(["image", "label", "probability"])
for path in sys.argv[2:]:
    try:
        image = Image.open(path)
        image.draft(None, (2 * side, 2 * side))  # decode a large JPEG at a reduced size, as for training
        image.load()
    except Exception as error:  # Pillow raises many kinds
        problems.append(f"{path} cannot be read: {error}")
        continue
    with contextlib.suppress(Exception):  # damaged EXIF data
        image = ImageOps.exif_transpose(image)
    if image.mode[0] in "IF":
        problems.append(f"{path} has more than 8 bits per channel: convert it first")
        continue
    if image.has_transparency_data:
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image.convert("RGBA"))
    square = ImageOps.fit(image.convert("RGB"), (side, side), Image.Resampling.BILINEAR)
    [logits] = session.run(["logits"], {"images": np.asarray(square).transpose(2, 0, 1)[None]})[0]
    probabilities = np.exp(logits - logits.max()) / np.exp(logits - logits.max()).sum()
    table.writerow([path, metadata["classes"][logits.argmax()], f"{probabilities.max():.4f}"])
sys.exit("\n".join(problems) or None)
