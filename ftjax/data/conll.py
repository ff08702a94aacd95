"""Files in CoNLL's columns: a word and its tag on each line, an empty line after each sentence."""

from pathlib import Path


def read_sentences(path: str | Path) -> list[dict[str, list[str]]]:
    """The sentences of a file, as `tokens` and `ner_tags`.

    The first column is the word, the last one the tag in IOB2 (B-name begins, I-name goes on, O is
    none). Lines that begin with -DOCSTART- and empty sentences are left out.

    Raises:
        ValueError: names the line that has no two columns, or whose tag is none or goes on with
            what did not begin.
    """
    sentences: list[dict[str, list[str]]] = [{"tokens": [], "ner_tags": []}]
    for number, line in enumerate(Path(path).read_text(encoding="utf-8").split("\n"), start=1):
        cells = line.rstrip("\r").split("\t" if "\t" in line else None)
        tags = sentences[-1]["ner_tags"]
        if not line.strip() or line.startswith("-DOCSTART-"):
            if tags:
                sentences.append({"tokens": [], "ner_tags": []})
            continue
        if len(cells) < 2:
            raise ValueError(f"{path}, line {number}: expected a word and its tag, not {line!r}.")
        kind, _, name = cells[-1].partition("-")
        goes_on = kind == "I" and tags and tags[-1] in (f"B-{name}", f"I-{name}")
        if cells[-1] != "O" and not (name and (kind == "B" or goes_on)):
            raise ValueError(
                f"{path}, line {number}: the tag {cells[-1]!r} is not O, not B-name, and does not "
                "go on with the tag before it as I-name."
            )
        sentences[-1]["tokens"].append(cells[0])
        tags.append(cells[-1])
    return [sentence for sentence in sentences if sentence["tokens"]]
