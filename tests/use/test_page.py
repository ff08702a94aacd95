"""A document as a page with its paragraphs coloured."""

import html.parser

import pytest
from absl.testing import flagsaver

from ftjax.commands import predict
from ftjax.use.page import marked_page


class Read(html.parser.HTMLParser):
    """Texts and colours of paragraphs and labels."""

    def __init__(self, page):
        super().__init__()
        self.found, self.open = [], []
        self.feed(page)

    def handle_starttag(self, tag, attributes):
        self.open.append((tag, dict(attributes).get("style", "")))

    def handle_endtag(self, tag):
        while self.open.pop()[0] != tag:
            pass

    def handle_data(self, data):
        if data.strip() and self.open and self.open[-1][0] in ("p", "span", "script"):
            self.found.append((*self.open[-1], data.strip()))


def test_paragraphs_have_the_colours_of_their_labels():
    texts = ["You owe.", "Nothing.", "You owe & <script>alert(1)</script>\nmore."]
    marks = [{"duty": 0.914, "<b>": 0.6}, {}, {"duty": 0.5}]
    page = marked_page("a <contract>", texts, marks)
    assert "<script>" not in page and "a &lt;contract&gt;" in page
    found = Read(page).found
    legend, body = found[:2], found[2:]
    assert [text for _, _, text in legend] == ["<b>: 1", "duty: 2"]
    colours = {text.split(":")[0]: style for _, style, text in legend}
    assert len(set(colours.values())) == 2
    assert body[:2] == [("span", colours["duty"], "duty 91%"), ("span", colours["<b>"], "<b> 60%")]
    (_, first, _), (_, plain, nothing), *_, (_, last, markup) = body[2:]
    assert first == last != plain == ""
    assert nothing == "Nothing." and markup == texts[2]


def test_nothing_to_colour():
    assert "No paragraph has a label" in marked_page("x", ["a"], [{}])


@pytest.mark.parametrize("flag", ["html", "conll"])
def test_what_is_written_of_a_file_needs_one(flag):
    with flagsaver.flagsaver(), pytest.raises(SystemExit) as ended:
        predict.start(["predict", "--run=nowhere", "--text=a", f"--{flag}=x"])
    assert str(ended.value) == f"error: --{flag} needs --file."
