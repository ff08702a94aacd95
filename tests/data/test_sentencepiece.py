"""Folders whose only vocabulary is a SentencePiece model, against the library that trained it."""

import json
import string

import pytest

spm = pytest.importorskip("sentencepiece", reason="the package sentencepiece is not installed")

from ftjax.data.tokenizer import load_tokenizer  # noqa: E402

TEXT = "import the weights"
# model_type -> name of the file, tokenizer, kind, ids of pad, unk, bos, eos, what stands around.
CASES = {
    "llama": ("tokenizer.model", "LlamaTokenizer", "bpe", (-1, 0, 1, 2), False),
    "mt5": ("spiece.model", "T5Tokenizer", "unigram", (0, 2, -1, 1), True),
    "deberta-v2": ("spm.model", "DebertaV2Tokenizer", "unigram", (0, 2, -1, 1), True),
}


@pytest.mark.parametrize("model_type", CASES)
def test_a_folder_with_a_sentencepiece_model_only(tmp_path, model_type):
    name, tokenizer_class, kind, (pad, unk, bos, eos), is_surrounded = CASES[model_type]
    (tmp_path / "text").write_text(f"{TEXT} of a network\n{string.printable}\n" * 20)
    spm.SentencePieceTrainer.train(
        input=str(tmp_path / "text"),
        model_prefix=str(tmp_path / "trained"),
        vocab_size=400,
        hard_vocab_limit=False,
        byte_fallback=kind == "bpe",
        model_type=kind,
        pad_id=pad,
        unk_id=unk,
        bos_id=bos,
        eos_id=eos,
        minloglevel=2,
    )
    folder = tmp_path / model_type
    folder.mkdir()
    (tmp_path / "trained.model").rename(folder / name)
    fields = {"model_type": model_type, "vocab_size": 800}
    (folder / "config.json").write_text(json.dumps(fields))
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": tokenizer_class}))
    ids = load_tokenizer(folder)(TEXT)["input_ids"]
    pieces = spm.SentencePieceProcessor(str(folder / name)).encode(TEXT)
    start = ids.index(pieces[0])
    assert ids[start : start + len(pieces)] == pieces
    assert (len(ids) > len(pieces)) == is_surrounded
