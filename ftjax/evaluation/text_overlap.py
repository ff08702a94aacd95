"""Generated texts against those that people wrote, and against what they were made from.

ROUGE is rouge_score's (Lin 2004), chrF sacrebleu's (Popović 2015). How they are called is what
makes such numbers comparable or not, and stands here: F1 times 100, the mean over documents, with
Porter's stemmer; for rougeLsum each sentence on a line of its own (see `sentences`).
"""

import re
from collections import Counter, defaultdict
from collections.abc import Sequence
from decimal import Decimal

import numpy as np
from rouge_score.rouge_scorer import RougeScorer
from sacrebleu.metrics.chrf import CHRF
from text_to_num import alpha2digit

ROUGE = ("rouge1", "rouge2", "rougeL", "rougeLsum")
# Metrics that compare a prediction with its source only.
OF_PREDICTIONS = (
    *("copy_rate", "copy_density", "novel_bigrams", "unsupported_numbers"),
    *("with_unsupported_numbers", "words"),
)
NOVEL = 2
MOST_LEADING = 10

END_OF_SENTENCE = re.compile(r"(?<=[.!?])\s+")
WORD = re.compile(r"\w+")
HYPHEN = re.compile(r"(?<=[^\W\d])-(?=[^\W\d])")
NUMBER = re.compile(r"(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)(?:\.\d+)?")
ORDINAL = re.compile(r"(?:st|nd|rd|th)\b")
ENUMERATOR = re.compile(r"(^|[.!?:;\n])(\s*)\d{1,2}[.)]\s")
MONTHS = (
    *("january", "february", "march", "april", "may", "june"),
    *("july", "august", "september", "october", "november", "december"),
)
MONTH = re.compile("|".join(rf"\b{m[:3]}(?:{m[3:]})?\b" for m in MONTHS), re.IGNORECASE)


def sentences(text: str) -> list[str]:
    """The lines of a text, each divided behind `.`, `!` or `?` and a space; none of them empty."""
    parts = (END_OF_SENTENCE.split(line.strip()) for line in text.splitlines())
    return [sentence for line in parts for sentence in line if sentence]


def lead(source: str, count: int) -> str:
    """The first sentences of a source, one a line."""
    return "\n".join(sentences(source)[:count])


def best_lead(sources: Sequence[str], references: Sequence[str]) -> int:
    """How many leading sentences come closest to the references, by rougeLsum."""

    def score(count: int) -> float:
        found = rouge_scores([lead(source, count) for source in sources], references)
        return float(found["rougeLsum"].mean())

    return max(range(1, MOST_LEADING + 1), key=score)


TEXT_METRICS = {
    "rougeLsum": "higher",
    "rougeL": "higher",
    "rouge2": "higher",
    "rouge1": "higher",
    "chrf": "higher",
    "loss": "lower",
    "accuracy": "higher",
    "with_unsupported_numbers": "lower",
}
"""What is scored -> which way is better."""


def text_metrics(
    predictions: Sequence[str], references: Sequence[str], sources: Sequence[str]
) -> dict[str, float]:
    """What `by_document` gives, in the mean over documents, and two that have no such mean.

    Returns:
        With `chrf`, over all documents at once as sacrebleu has it, and
        `with_unsupported_numbers`, the share of predictions that have any.
    """
    found = by_document(predictions, references, sources)
    return {
        **{name: float(values.mean()) for name, values in found.items()},
        "chrf": float(CHRF().corpus_score(list(predictions), [list(references)]).score),
        "with_unsupported_numbers": float((found["unsupported_numbers"] > 0).mean()),
    }


def by_document(
    predictions: Sequence[str], references: Sequence[str], sources: Sequence[str]
) -> dict[str, np.ndarray]:
    """Scores of each document, float64 [documents].

    Args:
        predictions: what was generated.
        references: what a person wrote.
        sources: what both were made from.

    Returns:
        `rouge1`, `rouge2`, `rougeL`, `rougeLsum` (F1 times 100); `copy_rate` and `copy_density`
        (see `copied`), `novel_bigrams` (see `novel_ngrams`), `unsupported_numbers` (how many) and
        `words` of the predictions.
    """
    pairs = list(zip(predictions, sources, strict=True))
    copies = np.asarray([copied(*pair) for pair in pairs], np.float64).reshape(-1, 2)
    return {
        **rouge_scores(predictions, references),
        "copy_rate": copies[:, 0],
        "copy_density": copies[:, 1],
        "novel_bigrams": np.asarray([novel_ngrams(*pair, NOVEL) for pair in pairs], np.float64),
        "unsupported_numbers": np.asarray(
            [len(unsupported_numbers(*pair)) for pair in pairs], np.float64
        ),
        "words": np.asarray([len(_words(text)) for text in predictions], np.float64),
    }


def rouge_scores(predictions: Sequence[str], references: Sequence[str]) -> dict[str, np.ndarray]:
    """ROUGE's F1 times 100 of each document, float64 [documents]."""
    scorer = RougeScorer(list(ROUGE), use_stemmer=True)
    found = [
        scorer.score("\n".join(sentences(reference)), "\n".join(sentences(prediction)))
        for prediction, reference in zip(predictions, references, strict=True)
    ]
    return {
        name: np.asarray([100.0 * scores[name].fmeasure for scores in found], np.float64)
        for name in ROUGE
    }


def copied(prediction: str, source: str) -> tuple[float, float]:
    """How much of a prediction stands in its source word for word.

    Its words are divided, from the left and greedily, into the longest runs that the source has
    too (Grusky et al. 2018, https://arxiv.org/abs/1804.11283, figure 3).

    Returns:
        Of the prediction's words, the share that such runs hold (extractive fragment coverage), and
        the mean length of the run that a word is in (density); 0 for an empty prediction.
    """
    words, known = _words(prediction), _words(source)
    places = defaultdict(list)
    for place, word in enumerate(known):
        places[word].append(place)
    runs, start = [], 0
    while start < len(words):
        longest = max((_run(words[start:], known[at:]) for at in places[words[start]]), default=0)
        runs.append(longest)
        start += max(longest, 1)
    count = max(len(words), 1)
    return sum(runs) / count, sum(run**2 for run in runs) / count


def novel_ngrams(prediction: str, source: str, size: int) -> float:
    """Share of a prediction's n-grams that its source does not have; 0 without any.

    (As in See et al. 2017, https://arxiv.org/abs/1704.04368, figure 6.)
    """
    ngrams, known = _ngrams(_words(prediction), size), _ngrams(_words(source), size)
    novel = sum(count for ngram, count in ngrams.items() if ngram not in known)
    return novel / max(ngrams.total(), 1)


def unsupported_numbers(prediction: str, source: str) -> list[str]:
    """Numbers of a prediction that its source does not have, such as a dose that nobody said.

    English number words count as what they stand for, in both. Numbers that follow each other in
    the source may also be one ("one twenty over eighty", "nineteen ninety nine"), and a month that
    it names has its number. A prediction's 1, first, second and third are passed over, which are
    seldom quantities, and the numbers of a list ("2. Asthma"). What is left is a reason to look,
    and no proof: a number may follow from others.

    Returns:
        Each once, as digits, in the order of the prediction.
    """
    known = _known_numbers(_as_digits(source))
    named = {name[:3].lower() for name in MONTH.findall(source)}
    known |= {str(number) for number, month in enumerate(MONTHS, 1) if month[:3] in named}
    text = _as_digits(ENUMERATOR.sub(r"\1\2", prediction))
    found = []
    for match in NUMBER.finditer(text):
        seldom = ("1", "2", "3") if ORDINAL.match(text, match.end()) else ("1",)
        if (number := _value(match[0])) not in seldom:
            found.append(number)
    return [number for number in dict.fromkeys(found) if number not in known]


def _known_numbers(text: str) -> set[str]:
    matches = list(NUMBER.finditer(text))
    known = {_value(match[0]) for match in matches}
    for first, match in enumerate(matches):
        joined, end = match[0], match.end()
        for following in matches[first + 1 : first + 4]:
            if text[end : following.start()].strip(" ") or "." in joined:
                break
            joined, end = joined + following[0], following.end()
            known.add(_value(joined))
    return known


def _as_digits(text: str) -> str:
    return alpha2digit(HYPHEN.sub(" ", text), "en", threshold=0)


def _value(number: str) -> str:
    return f"{Decimal(number.replace(',', '')).normalize():f}"


def _run(words: Sequence[str], known: Sequence[str]) -> int:
    """How many words both begin with."""
    count = 0
    for one, other in zip(words, known, strict=False):
        if one != other:
            break
        count += 1
    return count


def _ngrams(words: Sequence[str], size: int) -> Counter[tuple[str, ...]]:
    return Counter(tuple(words[i : i + size]) for i in range(len(words) - size + 1))


def _words(text: str) -> list[str]:
    return WORD.findall(text.lower())
