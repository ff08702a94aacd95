"""A document with its paragraphs coloured by what a run says of them, as one HTML page."""

import collections
from collections.abc import Mapping, Sequence

import jinja2

PAGE = """<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{{ title }}</title>
<style>
  body { font: 16px/1.5 system-ui, sans-serif; max-width: 46rem; margin: 2rem auto; padding: 0 1rem;
         color: #222; background: #fff; }
  p { white-space: pre-wrap; border-left: .35rem solid transparent; padding: .3rem .8rem;
      margin: .6rem 0; }
  .label { font-size: .8rem; padding: .1rem .5rem; border-radius: 1rem; margin-right: .3rem;
           color: #222; white-space: nowrap; }
</style>
<h1>{{ title }}</h1>
<div>
{%- for label, hue in hues.items() %}
  <span class="label" style="background: hsl({{ hue }} 70% 82%)">
    {{- label }}: {{ counts[label] }}</span>
{%- else %}
  No paragraph has a label.
{%- endfor %}
</div>
{%- for text, marks in paragraphs %}
{%- if marks %}
{%- set hue = hues[marks | first] %}
<p style="border-color: hsl({{ hue }} 60% 50%); background: hsl({{ hue }} 70% 95%)">
  {%- for label, probability in marks.items() -%}
  <span class="label" style="background: hsl({{ hues[label] }} 70% 82%)">
    {{- label }} {{ "%.0f" | format(100 * probability) }}%</span>
  {%- endfor %}
{{ text }}</p>
{%- else %}
<p>{{ text }}</p>
{%- endif %}
{%- endfor %}
</html>
"""


def marked_page(title: str, texts: Sequence[str], marks: Sequence[Mapping[str, float]]) -> str:
    """The page.

    Args:
        title: such as the document's name.
        texts: its paragraphs, in order; what is markup in them is shown, not obeyed.
        marks: of each, labels and their probabilities, the one that colours it first.
    """
    counts = collections.Counter(label for found in marks for label in found)
    hues = {label: round(360 * number / len(counts)) for number, label in enumerate(sorted(counts))}
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined)
    paragraphs = list(zip(texts, marks, strict=True))
    return environment.from_string(PAGE).render(
        title=title, hues=hues, counts=counts, paragraphs=paragraphs
    )
