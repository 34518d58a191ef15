"""Show where an X-ray has what its report says: python examples/explain.py [ROOT [XRAY REPORT]]

Research use only. Writes explained.png. XRAY is a JPEG, PNG or DICOM; without one it is a synthetic phantom.
"""

import sys
from pathlib import Path

from PIL import Image, ImageDraw

from adamatch_ray.data.images import decode, encode_png, to_canvas
from adamatch_ray.data.phantom import generate
from adamatch_ray.engines.matching import MatchingEngine
from adamatch_ray.geometry import CanvasImage
from adamatch_ray.storage import Root

root = sys.argv[1] if sys.argv[1:] else "runs/phantom"
engine = MatchingEngine.load(Root(root))
if sys.argv[3:]:
    data, report = Path(sys.argv[2]).read_bytes(), sys.argv[3]
else:
    phantom = generate(index=1, seed=9)
    data, report = encode_png(phantom.image), f"{phantom.findings} {phantom.impression}"

decoded = decode(data)
canvas = to_canvas(decoded, engine.embedder.model.sizes.image.image_size)
image = CanvasImage(canvas, decoded.height, decoded.width)

print("What the X-ray shows, as far as the model knows:")
for keyword in engine.keywords([image], count=5)[0]:
    print(f"  {keyword.text} ({keyword.place}), similarity {keyword.score:.2f}")

(match,) = engine.match([image], [report])
picture = Image.fromarray(decoded.pixels).convert("RGB")
draw = ImageDraw.Draw(picture)
scale = picture.width / decoded.width  # a large X-ray may have been decoded smaller; regions are in original pixels
print("What the report says of it:")
for phrase in match.phrases:
    said = "denied" if phrase.denied else f"confidence {phrase.confidence:.2f}"
    print(f"  {phrase.text}: {said}")
    region = next((match.regions[word] for word in phrase.words if match.regions[word]), None)
    if region:
        draw.rectangle([value * scale for value in region.box], outline="orange", width=2)
        draw.text((region.box[0] * scale, region.box[1] * scale), phrase.text, fill="orange")
picture.save("explained.png")
print("explained.png shows where; research use only")
