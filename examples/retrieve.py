"""Find the reports that fit an X-ray, and the X-rays that fit a sentence: python examples/retrieve.py [ROOT]

Research use only. ROOT is a finished run, by default that of `make demo`.
"""

import sys

from adamatch_ray.engines.embedding import Embedder, embed_split
from adamatch_ray.metrics.retrieval import score_pairs
from adamatch_ray.storage import Root

root = sys.argv[1] if sys.argv[1:] else "runs/phantom"
embedder = Embedder.from_pretrained(f"{root}/adamatch/model")  # or a name on the hub
test = embed_split(embedder.model, embedder.tokenizer, Root(root).stage("studies"), "test", batch_size=32)

scores = score_pairs(test.heads, test.word_IND, test.mask_IN)
print("Its report:", test.reports[0])
for place in scores.image_to_text[0].argsort()[::-1][:3]:
    print(f"{scores.image_to_text[0, place]:.3f}  {test.study_ids[place]}  {test.reports[place]}")

sentence = "There is a large right pleural effusion."
asked = embedder.reports([sentence])
found = score_pairs(test.heads, asked.word_BND.cpu(), asked.mask_BN.cpu()).text_to_image[0]
print("\nX-rays for:", sentence)
for place in found.argsort()[::-1][:3]:
    print(f"{found[place]:.3f}  {test.study_ids[place]}  {test.reports[place]}")
