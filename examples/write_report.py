"""Write the report of an X-ray: python examples/write_report.py [ROOT [XRAY]]

Research use only. XRAY is a JPEG, PNG or DICOM; without one it is a synthetic phantom, whose true report is shown too.
"""

import sys
from pathlib import Path

from adamatch_ray.data.images import decode, encode_png, to_canvas
from adamatch_ray.data.phantom import generate
from adamatch_ray.engines.cycle import CycleEngine
from adamatch_ray.geometry import CanvasImage
from adamatch_ray.storage import Root

root = sys.argv[1] if sys.argv[1:] else "runs/phantom"
engine = CycleEngine.load(Root(root))
phantom = generate(index=1, seed=9)
data = Path(sys.argv[2]).read_bytes() if sys.argv[2:] else encode_png(phantom.image)

decoded = decode(data)
image = CanvasImage(to_canvas(decoded, engine.canvas), decoded.height, decoded.width)
for seed in range(3):
    (answer,) = engine.reports([image], [seed])
    print(f"Draft {seed} ({answer.status}): {answer.report}")
print("From the keywords:", ", ".join(keyword.text for keyword in answer.keywords))
if not sys.argv[2:]:
    print("What was drawn:", phantom.findings, phantom.impression)
