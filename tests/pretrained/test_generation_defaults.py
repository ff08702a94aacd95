"""generation_config.json read: what is used, what is said, what is refused."""

import json

import pytest

from ftjax.models.sampling import Sampling
from ftjax.pretrained.generation_defaults import generation_defaults


def read(folder, fields=None, config=None, *, stops=(), is_encoder_decoder=False):
    (folder / "config.json").write_text(json.dumps({"model_type": "llama"} | (config or {})))
    (folder / "generation_config.json").unlink(missing_ok=True)
    if fields is not None:
        (folder / "generation_config.json").write_text(json.dumps(fields))
    return generation_defaults(folder, stops, is_encoder_decoder=is_encoder_decoder)


def test_nothing_is_said(tmp_path):
    defaults = read(tmp_path, stops=(7,))
    assert defaults.sampling() == Sampling()
    assert defaults.stop_token_ids == (7,)
    assert defaults.sampling(temperature=0.7) == Sampling(temperature=0.7, top_k=50)
    assert defaults.sampling(temperature=0.7, top_k=0) == Sampling(temperature=0.7)
    with pytest.raises(ValueError, match="need a temperature above 0"):
        defaults.sampling(top_p=0.5)


def test_callers_come_before_the_file(tmp_path):
    fields = {"do_sample": True, "temperature": 0.6, "top_p": 0.9, "repetition_penalty": 1.1}
    defaults = read(tmp_path, fields)
    whole = Sampling(temperature=0.6, top_p=0.9, top_k=50, repetition_penalty=1.1)
    assert defaults.sampling() == defaults.sampling(top_p=None) == whole
    assert defaults.sampling(temperature=0) == Sampling(repetition_penalty=1.1)
    assert defaults.sampling(min_p=0.1, top_k=3).min_p == 0.1
    assert read(tmp_path, fields | {"temperature": 0.0}).sampling().temperature == 0


def test_old_checkpoints_have_it_in_their_config(tmp_path):
    old = {"repetition_penalty": 1.5, "eos_token_id": 4}
    assert read(tmp_path, None, old).sampling() == Sampling(repetition_penalty=1.5)
    defaults = read(tmp_path, {"temperature": 0.5}, old)
    assert defaults.sampling() == Sampling()
    assert defaults.stop_token_ids == (4,)


def test_ends(tmp_path):
    fields = {"eos_token_id": [3, 5, -1], "stop_strings": "END", "max_new_tokens": 9}
    defaults = read(tmp_path, fields, {"eos_token_id": 8}, stops=(5, 6))
    assert defaults.stop_token_ids == (3, 5, 6)
    assert defaults.stop_strings == ("END",)
    assert defaults.max_new_tokens == 9


def test_encoder_decoders(tmp_path):
    fields = {
        "decoder_start_token_id": 2,
        "forced_bos_token_id": 0,
        "max_length": 142,
        "min_length": 56,
        "eos_token_id": 2,
        "bad_words_ids": [[2], [9], [7, 8]],
    }
    defaults = read(tmp_path, fields, is_encoder_decoder=True)
    assert defaults.decoder_prompt == (2, 0)
    assert defaults.max_new_tokens == 140
    assert defaults.sampling() == Sampling(min_new_tokens=54, banned_tokens=(9,))
    assert defaults.passed_over == ("1 bad_words_ids of several tokens",)
    with pytest.raises(ValueError, match="no decoder_start_token_id to begin with"):
        read(tmp_path, {}, is_encoder_decoder=True)


def test_what_is_not_done_is_named(tmp_path):
    fields = {
        "num_beams": 4,
        "penalty_alpha": 0.6,
        "guidance_scale": 1.5,
        "min_length": 5,
        # Nothing would be done with these, or nobody knows them.
        "typical_p": 1.0,
        "encoder_no_repeat_ngram_size": 0,
        "length_penalty": 2.0,
        "early_stopping": True,
        "use_cache": False,
        "max_window_size": 24000,
    }
    said = "guidance_scale=1.5", "num_beams=4", "penalty_alpha=0.6", "min_length=5"
    assert read(tmp_path, fields).passed_over == said
    assert read(tmp_path, {}).passed_over == ()


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ([1], "holds a list, not an object"),
        ({"temperature": "hot"}, "temperature is 'hot', not a number"),
        ({"temperature": float("nan")}, "temperature is nan, not a number"),
        ({"temperature": -1}, "temperature must be above|temperature must be at least 0; it is -1"),
        ({"top_k": 2.5}, "top_k is 2.5, not a whole number"),
        ({"top_k": True}, "top_k is True, not a whole number"),
        ({"top_k": -3}, "top_k must be at least 1; it is -3"),
        ({"top_p": 7}, "top_p must be above 0 and at most 1; it is 7"),
        ({"repetition_penalty": 0}, "repetition_penalty must be above 0"),
        ({"do_sample": "yes"}, "do_sample is 'yes', neither true nor false"),
        ({"eos_token_id": "</s>"}, "eos_token_id is '</s>', neither a token id nor"),
        ({"eos_token_id": [1, [2]]}, "eos_token_id is .* neither a token id nor"),
        ({"bad_words_ids": [5]}, "bad_words_ids is not a list of lists"),
        ({"stop_strings": ["a", ""]}, "stop_strings is .* neither a text nor"),
        ({"max_new_tokens": 0}, "may have 0 new tokens"),
    ],
)
def test_values_that_mean_nothing(tmp_path, fields, sentence):
    with pytest.raises(ValueError, match=f"generation_config.json.*({sentence})"):
        read(tmp_path, fields)
