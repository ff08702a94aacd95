"""What the parity tests of encoders share: a tiny size, a padded batch, and the published heads."""

import numpy as np
import torch
from compare import assert_same_network

from ftjax.pretrained.load import load_model

TINY = {
    "vocab_size": 99,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "max_position_embeddings": 24,
    "initializer_range": 0.2,
}


def batch(*, token_types=True, pad_token_id=0, left=False, length=17):
    """Three rows: full, half, and of one token.

    The text itself has no padding token: torch gives its embedding no gradient.
    """
    random = np.random.default_rng(1)
    mask = np.ones((3, length), np.int32)
    mask[1, 9:] = 0
    mask[2, 1:] = 0
    if left:
        mask = mask[:, ::-1].copy()
    input_ids = random.integers(4, 99, (3, length)).astype(np.int32)
    input_ids[mask == 0] = pad_token_id
    inputs = {"input_ids": input_ids, "attention_mask": mask}
    if token_types:
        inputs["token_type_ids"] = random.integers(0, 2, (3, length)).astype(np.int32)
    return inputs


def labels_of(network):
    """How many classes a tiny published head has; those for spans have two by their nature."""
    return 2 if network == "question_answering" else 3


def assert_same_head(folder, torch_model, network, inputs, **keywords):
    """A published head's logits, with every hidden state and gradient.

    Random heads with biases of zero would hide a forgotten bias, so all biases are random.
    """
    torch.manual_seed(1)
    with torch.no_grad():
        for name, parameter in torch_model.named_parameters():
            if name.endswith("bias"):
                parameter.normal_(0, 0.2)
    if network == "question_answering":
        join_span_scores(torch_model)
    valid = inputs["attention_mask"]
    return assert_same_network(
        folder, torch_model, network, inputs, outputs=("logits",), valid=valid, **keywords
    )


def assert_same_positions(folder, torch_model):
    """Of networks whose positions count tokens that are no padding (1), and all embedded input."""
    torch_model.eval().save_pretrained(folder)
    ours, random = load_model(folder), np.random.default_rng(0)
    for inputs in (
        {"input_ids": np.array([[5, 6, 1, 7, 8], [1, 1, 5, 6, 7]], np.int32)},
        {"inputs_embeds": random.normal(size=(2, 9, 32)).astype(np.float32)},
    ):
        with torch.no_grad():
            theirs = torch_model(**{name: torch.tensor(value) for name, value in inputs.items()})
        difference = np.asarray(ours(**inputs).last_hidden_state) - theirs.last_hidden_state.numpy()
        assert abs(difference).max() <= 1e-5


def join_span_scores(torch_model):
    """Both outputs of a published head for spans, which are one product, as `logits`."""
    forward = torch_model.forward

    def joined(**inputs):
        output = forward(**inputs)
        output["logits"] = torch.stack([output.start_logits, output.end_logits], -1)
        return output

    torch_model.forward = joined
