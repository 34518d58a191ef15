"""Score anyone's reports on the test split: python examples/score.py [ROOT [TABLE]]

Research use only. TABLE is a CSV, JSON-lines or parquet file with the columns study_id and report. Without one, every
X-ray gets the same normal report: the figures that a model has to beat.
"""

import csv
import sys
from pathlib import Path

from adamatch_ray.data.labeler import RuleLabeler
from adamatch_ray.data.predictions import read_predictions
from adamatch_ray.evaluation import reports
from adamatch_ray.evaluation import split as splits
from adamatch_ray.storage import Root

root = sys.argv[1] if sys.argv[1:] else "runs/phantom"
split = splits.read(Root(root).stage("studies"), "test")
table = sys.argv[2] if sys.argv[2:] else "predictions.csv"
if not sys.argv[2:]:
    with Path(table).open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["study_id", "report"])
        rows.writerows([id, "The heart is normal in size. The lungs are clear."] for id in split.ids)

predicted = read_predictions(table, "study_id", "report", "image").reports or {}
scores, _ = reports.score(split, split.place(predicted), RuleLabeler(), meteor=(), resamples=1000, seed=0)
print(f"{scores['studies']} studies, {scores['empty']} without a report")
for name, value in scores["values"].items():
    interval = scores["intervals"][name]
    print(f"{name:10} {value:.4f}  [{interval['low']:.4f}, {interval['high']:.4f}]")
f1 = scores["findings"]["by_report"]["micro_f1_interval"]
print(f"finding F1 {f1['value']:.4f}  [{f1['low']:.4f}, {f1['high']:.4f}]")
