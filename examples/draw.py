"""Draw the X-ray of a report, and read it back: python examples/draw.py [ROOT [REPORT]]

Research use only. Writes drawn.png, a synthetic X-ray that is nobody's.
"""

import sys
from pathlib import Path

from adamatch_ray.data.images import encode_png
from adamatch_ray.engines.cycle import CycleEngine
from adamatch_ray.storage import Root

root = sys.argv[1] if sys.argv[1:] else "runs/phantom"
report = sys.argv[2] if sys.argv[2:] else "There is a large right pleural effusion. The heart is normal in size."
engine = CycleEngine.load(Root(root))

((drawn, written),) = engine.report_cycle([report], seeds=[0])
if drawn.image is None:
    sys.exit(drawn.status)
Path("drawn.png").write_bytes(encode_png(drawn.image))
print("Drawn from:  ", report)
print("Beginning with regions that fit:", ", ".join(keypatch.word for keypatch in drawn.keypatches))
print("Read back as:", written.report if written else "")
print("drawn.png is synthetic; research use only")
