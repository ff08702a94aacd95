"""Recommends with a finished run: python scripts/recommend.py --run=runs/... --user=196

For somebody whom the data do not know: --likes="Toy Story" --likes="Fargo", the newest last.
"""

import json
import sys

from absl import app, flags
from rich.console import Console

from ftjax.command_line import errors_as_sentences, parse_flags, use_compilation_cache
from ftjax.progress import shown_on
from ftjax.use.recommend import Recommender

RUN = flags.DEFINE_string("run", None, "Folder of a finished run.", required=True)
USER = flags.DEFINE_string("user", None, "Somebody of the data.")
LIKES = flags.DEFINE_multi_string(
    "likes", [], "What somebody likes, an item's text or its beginning; may be repeated."
)
COUNT = flags.DEFINE_integer("count", 10, "How many items.", lower_bound=1)
JSON = flags.DEFINE_bool("json", False, "One JSON line per item.")
ACCEPT_FIELDS = flags.DEFINE_list(
    "accept_fields", [], "Fields of the checkpoint's config.json to ignore, by commas."
)


def main(_) -> None:
    """Loads, ranks, prints."""
    if (USER.value is None) == (not LIKES.value):
        sys.exit("error: give --user or --likes (once or more).")
    with errors_as_sentences(), shown_on(Console(stderr=True)):
        use_compilation_cache()
        recommender = Recommender(RUN.value, accept_fields=tuple(ACCEPT_FIELDS.value))
        if USER.value is not None:
            found = recommender.for_user(USER.value, COUNT.value)
        else:
            for text in LIKES.value:
                _tell(recommender, text)
            found = recommender.for_likes(LIKES.value, COUNT.value)
        for item in found:
            print(
                json.dumps(item, ensure_ascii=False)
                if JSON.value
                else f"{item['score']:7.3f}  {item['text']}"
            )


def _tell(recommender: Recommender, text: str) -> None:
    item = recommender.item_called(text)
    told = "not in the catalogue, read as it is" if item is None else recommender.texts[item]
    print(f"{text}: {told}", file=sys.stderr)


def start(arguments: list[str]) -> None:
    """The program, with its name and arguments."""
    app.run(main, argv=arguments, flags_parser=parse_flags)
