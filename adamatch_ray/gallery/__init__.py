"""Pictures that explain: where each word was matched, keywords with their boxes, keypatches (the paper's Fig. 8)."""
