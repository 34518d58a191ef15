"""METEOR for the paper's Tables 1 and 2, in the two versions that people report; their numbers differ."""

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray


def meteor_nltk(references: Sequence[Sequence[str]], hypotheses: Sequence[str]) -> NDArray[np.float64]:
    """NLTK's METEOR of every study, shape (S,). Empty text scores 0. Raises ValueError without WordNet."""
    from nltk.corpus import wordnet
    from nltk.stem.porter import PorterStemmer
    from nltk.translate.meteor_score import meteor_score

    try:
        wordnet.ensure_loaded()
    except LookupError as error:
        raise ValueError(
            "METEOR needs WordNet; run `python -m nltk.downloader wordnet`, or point NLTK_DATA at a folder that has "
            "corpora/wordnet"
        ) from error
    stemmer, thesaurus = _Memo(stem=PorterStemmer().stem), _Memo(synsets=wordnet.synsets)
    scores = []
    for group, hypothesis in zip(references, hypotheses, strict=True):
        words = hypothesis.split()
        reference_words = [found for reference in group if (found := reference.split())]
        scored = words and reference_words
        scores.append(meteor_score(reference_words, words, stemmer=stemmer, wordnet=thesaurus) if scored else 0.0)
    return np.array(scores, dtype=np.float64)


class _Memo:
    """Stands in for a stemmer or a thesaurus; reports repeat few words very often."""

    def __init__(self, **methods: Any) -> None:
        for name, method in methods.items():
            setattr(self, name, lru_cache(maxsize=None)(method))


def meteor_java(references: Sequence[Sequence[str]], hypotheses: Sequence[str]) -> float:
    """METEOR 1.5 of the corpus, as the Java program aggregates it. Raises ValueError without Java or its wrapper."""
    from shutil import which

    try:
        from pycocoevalcap.meteor.meteor import Meteor as JavaMeteor
    except ImportError as error:
        raise ValueError("meteor_1.5 needs `pip install pycocoevalcap`; or ask for meteor_nltk") from error
    if which("java") is None:
        raise ValueError("meteor_1.5 runs a Java program and there is no `java` on PATH; install a JRE")
    numbers = range(len(hypotheses))
    program = JavaMeteor()
    try:
        score, _ = program.compute_score(
            {number: list(references[number]) for number in numbers},
            {number: [hypotheses[number]] for number in numbers},
        )
    finally:
        program.meteor_p.kill()
        program.meteor_p.wait()
    return float(score)
