"""Plans by matrix done: every matrix at its own bits, embedding and head at few, in memory and on disk."""

import copy

import layerwise as lw
import pytest
import torch
from families import logits, random_tokens, sliced, slices, tiny
from hypothesis import given, settings
from hypothesis import strategies as st
from layerwise.backbone.structure import blocks, linears, tied, weight_matrix
from layerwise.plans import by_part
from layerwise.quantization import HQQ, RTN, PackedEmbedding, PackedLinear, Quanto, packed
from layerwise.quantization.packed import dequantized, pack, unpack_rows
from safetensors.torch import load_file

TOKENS = random_tokens(6, 12)
EVEN = {"intermediate_size": 64}  # groups of 16 divide it
MODELS = {
    "llama": tiny(**EVEN),
    "llama, tied, every bias": tiny(tie_word_embeddings=True, attention_bias=True, mlp_bias=True, **EVEN),
    "gpt2": tiny("gpt2"),  # whose matrices are Conv1D; tied
    "phi, a head with a bias": tiny("phi"),
    "phi, a tied head with a bias": tiny("phi", tie_word_embeddings=True),
    "gemma2, a scale after the embedding": tiny("gemma2", **EVEN),
    "opt, untied": tiny("opt", tie_word_embeddings=False),
}
QUANTIZERS = {"rtn": RTN(16), "quanto": Quanto(), "hqq": HQQ(16)}
every_model = pytest.mark.parametrize("model", MODELS.values(), ids=MODELS)
every_quantizer = pytest.mark.parametrize("quantizer", QUANTIZERS.values(), ids=QUANTIZERS)


def drawn(model, seed=0, widths=(8, 4, 2, None)):
    """A plan that gives every part of a model one of `widths` at random, but few bits to both ends."""
    shape, generator = lw.shape(model), torch.Generator().manual_seed(seed)
    bits = [widths[i] for i in torch.randint(len(widths), (len(shape.parts),), generator=generator)]
    return by_part(shape, [bits[i] or 4 if part.block is None else bits[i] for i, part in enumerate(shape.parts)])


def by_hand(model, plan, quantizer):
    """The dense model with the weights that few bits stand for in place of its own."""
    model = copy.deepcopy(model)

    def do(weight, bits):
        if bits is not None:
            weight.data.copy_(dequantized(quantizer.matrix(weight.detach().float(), bits)))

    for block, layer in zip(blocks(model), plan.layers, strict=True):
        for path, linear in linears(block).items():
            do(weight_matrix(linear), layer.bits_of(path))
    embedding, head = model.get_input_embeddings(), model.get_output_embeddings()
    of_embedding, of_head = plan.ends(tied(model))
    do(embedding.weight, of_embedding)
    if not tied(model):
        do(head.weight, of_head)
    return model


def bytes_in(folder):
    """Bytes of all tensors in a folder's safetensors."""
    tensors = [tensor for file in folder.glob("*.safetensors") for tensor in load_file(file).values()]
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


@given(st.integers(1, 8), st.integers(1, 9), st.integers(1, 21), st.data())
def test_rows_are_unpacked_as_they_were_packed(bits, rows, columns, data):
    codes = torch.randint(2**bits, (rows, columns), dtype=torch.uint8)
    which = torch.tensor(data.draw(st.lists(st.integers(0, rows - 1), max_size=5)), dtype=torch.long)
    assert unpack_rows(pack(codes, bits), bits, rows, columns, which).equal(codes[which])


@every_model
@every_quantizer
def test_a_model_computes_with_the_weights_that_few_bits_stand_for(model, quantizer, tmp_path):
    plan, before = drawn(model), copy.deepcopy(model.state_dict())
    small = lw.compress(model, plan, quantizer=quantizer)
    assert all(before[key].equal(value) for key, value in model.state_dict().items())
    assert logits(small).equal(logits(by_hand(model, plan, quantizer)))
    assert isinstance(small.get_input_embeddings(), PackedEmbedding) and tied(small) == tied(model)
    size = lw.size(small)
    assert size.parameters == lw.size(model).parameters
    lw.save(small, tmp_path / "small")
    assert bytes_in(tmp_path / "small") == size.bytes
    back, _ = lw.load(tmp_path / "small", device="cpu")
    assert logits(back).equal(logits(small)) and lw.size(back) == size and tied(back) == tied(model)
    lw.save(back, tmp_path / "again")
    assert bytes_in(tmp_path / "again") == size.bytes


@settings(max_examples=12)
@given(
    st.sampled_from(sorted(MODELS)),
    st.sampled_from(sorted(QUANTIZERS)),
    st.integers(0, 2**31),
    st.sampled_from((torch.float32, torch.bfloat16)),
)
def test_predicted_bytes_are_those_of_the_compressed_model(name, how, seed, dtype):
    model = copy.deepcopy(MODELS[name])
    for parameter in model.parameters():
        parameter.data = parameter.data.to(dtype)
    plan, quantizer = drawn(model, seed), QUANTIZERS[how]
    small = lw.compress(model, plan, quantizer=quantizer)
    assert plan.predicted_bytes(lw.shape(model), quantizer.stored) == lw.size(small).bytes
    found = {path: layer.bits for path, layer in packed(small).items()}
    asked = [bits for bits in plan.bits_by_part(lw.shape(model)) if bits is not None]
    assert sorted(found.values()) == sorted(asked)


@pytest.mark.parametrize("bits", [2, 3, 5, 8])
def test_a_row_may_end_within_a_byte(bits):
    model = tiny("opt", hidden_size=36, word_embed_proj_dim=36, tie_word_embeddings=False, vocab_size=101)
    plan = lw.Plan((lw.Layer(),) * 3, 36, embedding_bits=bits)
    small = lw.compress(model, plan, quantizer=RTN(5))
    assert logits(small).equal(logits(by_hand(model, plan, RTN(5))))


@pytest.mark.parametrize("ends", [{"embedding_bits": 4}, {"head_bits": 4}])
def test_one_end_alone(ends):
    model = MODELS["llama"]
    plan = lw.Plan((lw.Layer(),) * 3, 32, **ends)
    small = lw.compress(model, plan)
    kinds = [type(module) for module in (small.get_input_embeddings(), small.get_output_embeddings())]
    expected = {"embedding_bits": [PackedEmbedding, torch.nn.Linear], "head_bits": [torch.nn.Embedding, PackedLinear]}
    assert kinds == expected[next(iter(ends))]
    assert plan.predicted_bytes(lw.shape(model)) == lw.size(small).bytes
    both = lw.compress(MODELS["gpt2"], plan)
    assert tied(both) and isinstance(both.get_input_embeddings(), PackedEmbedding)


@every_model
def test_a_table_for_both_stays_one_when_it_is_copied_cast_and_changed_in_place(model):
    plan = drawn(model)
    small = lw.compress(model, plan)
    expected, size = logits(small), lw.size(small)
    other = copy.deepcopy(small)
    other.to(torch.bfloat16).to(torch.float32)
    assert tied(other) == tied(model) and lw.size(other) == size
    for tensor in (*other.parameters(), *other.buffers()):
        tensor.data.zero_()
    assert logits(small).equal(expected), "the copy has the tensors of its original"
    inplace = copy.deepcopy(model)
    assert lw.compress(inplace, plan, inplace=True) is inplace and logits(inplace).equal(expected)


def test_rows_come_in_the_dtype_of_the_model(tmp_path):
    small = lw.compress(MODELS["gemma2, a scale after the embedding"], drawn(MODELS["gpt2"], widths=(4,)))
    lw.save(small, tmp_path / "small")
    for model in (lw.load(tmp_path / "small", device="cpu", dtype=torch.bfloat16)[0], small.to(torch.bfloat16)):
        assert model.dtype == model.get_input_embeddings()(TOKENS).dtype == torch.bfloat16
        assert packed(model)["model.embed_tokens"].scale.dtype == torch.float16


@pytest.mark.parametrize("tie", [True, False])
@pytest.mark.parametrize("plan", [slices(20, 29, 11), slices(16, 32, 16, head=16), slices(31, 32, 32, head=31)])
def test_a_sliced_model_has_the_table_that_slicing_leaves(tie, plan, tmp_path):
    model = tiny(tie_word_embeddings=tie, vocab_size=384, **EVEN)
    more = lw.Plan((lw.Layer(matrices={"mlp.up_proj": 8}),) * 3, 32, embedding_bits=6, head_bits=6)
    text = random_tokens(16, 32)
    small = lw.compress(model, plan | more, text)
    only = sliced("sequential", model, plan, text)
    assert tied(small) == tied(only)
    assert (plan | more).predicted_bytes(lw.shape(model)) == lw.size(small).bytes
    assert logits(small).equal(logits(by_hand(only, more, RTN())))
    lw.save(small, tmp_path / "small")
    back, _ = lw.load(tmp_path / "small", device="cpu")
    assert logits(back).equal(logits(small)) and lw.size(back) == lw.size(small) and tied(back) == tied(small)


def test_blocks_that_are_left_have_their_own_bits():
    model = MODELS["llama"]
    plan = lw.Plan(
        (lw.Layer(keep=False), lw.Layer(matrices={"mlp.up_proj": 2}), lw.Layer(bits=8)), 32, embedding_bits=4
    )
    small = lw.compress(model, plan)
    found = {path: layer.bits for path, layer in packed(small).items() if ".1." not in path}
    assert found == {"model.layers.0.mlp.up_proj": 2, "model.embed_tokens": 4}
    assert plan.predicted_bytes(lw.shape(model)) == lw.size(small).bytes


def test_a_function_of_ones_own_is_told_bits_by_path():
    seen = []

    def keep(model, bits, tokens=None):
        seen.extend(bits)
        return model

    layers = (lw.Layer(bits=4, matrices={"mlp.up_proj": 2}), lw.Layer(bits=3), lw.Layer(matrices={"mlp.up_proj": 2}))
    lw.compress(MODELS["llama"], lw.Plan(layers, 32), quantizer=keep)
    paths = list(linears(blocks(MODELS["llama"])[0]))
    assert seen == [dict.fromkeys(paths, 4) | {"mlp.up_proj": 2}, 3, {"mlp.up_proj": 2}] and list(seen[0]) == paths
    with pytest.raises(ValueError, match=r"keep leaves embedding and head as they are, since it has no .matrix"):
        lw.compress(MODELS["llama"], lw.Plan(layers, 32, head_bits=8), quantizer=keep)


def test_what_cannot_be_done_is_said_and_changes_nothing():
    model, layers = copy.deepcopy(MODELS["llama"]), (lw.Layer(),) * 3
    with pytest.raises(ValueError, match=r"layer 2 has no linear layer 'mlp.up'; it has self_attn.q_proj"):
        lw.compress(model, lw.Plan((*layers[:2], lw.Layer(matrices={"mlp.up": 4})), 32))
    with pytest.raises(ValueError, match="quanto has no 3 bits; it has 8, 4, 2"):
        lw.compress(model, lw.Plan(layers, 32, embedding_bits=3), quantizer="quanto")
    with pytest.raises(ValueError, match="quanto has no 5 bits"):
        lw.compress(model, lw.Plan((*layers[:2], lw.Layer(matrices={"mlp.up_proj": 5})), 32), quantizer="quanto")
    with pytest.raises(ValueError, match="hqq, head: rows of 32 weights can't be cut into groups of 24"):
        lw.compress(model, lw.Plan(layers, 32, head_bits=4), quantizer=HQQ(24))
    with pytest.raises(ValueError, match="one table: set one of them, or both alike"):
        lw.compress(MODELS["gpt2"], lw.Plan(layers, 32, embedding_bits=4, head_bits=8))
    model.lm_head.weight.data[3, 3] = float("nan")
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(ValueError, match="rtn, head: the weights hold NaN or infinity"):
        lw.compress(model, drawn(model), inplace=True)
    assert all(before[key].nan_to_num().equal(value.nan_to_num()) for key, value in model.state_dict().items())


@pytest.mark.parametrize("ends", [{"embedding_bits": 4}, {}])
def test_what_has_few_bits_in_part_is_refused_where_dense_weights_are_needed(ends):
    layers = (lw.Layer(matrices={} if ends else {"mlp.up_proj": 4}),) * 3
    small = lw.compress(MODELS["llama"], lw.Plan(layers, 32, **ends))
    more = lw.Plan((lw.Layer(matrices={"mlp.down_proj": 4}),) * 3, 32)
    asked = [lw.shape, lambda small: lw.compress(small, more), lambda small: lw.compress(small, slices(20, 20, 20))]
    for ask in [*asked, *([] if ends else [lw.scores.zd])]:  # which looks at blocks alone
        with pytest.raises(ValueError, match="few bits already"):
            ask(small)


@every_model
def test_a_head_is_unpacked_once_to_be_evaluated(model, monkeypatch):
    small = lw.compress(model, drawn(model))
    expected = logits(small, TOKENS).double().log_softmax(-1)[:, :-1].gather(2, TOKENS[:, 1:, None]).mean((1, 2))
    table, unpacked = small.get_output_embeddings(), []
    table = getattr(table, "table", table)
    weights = table.weights
    monkeypatch.setattr(table, "weights", lambda: unpacked.append(1) or weights())
    torch.testing.assert_close(-lw.evaluation.window_losses(small, TOKENS, batch=2), expected, rtol=1e-5, atol=1e-5)
    assert len(unpacked) == 1


def test_users_generate_and_measure():
    model = MODELS["phi, a tied head with a bias"]
    small = lw.compress(model, drawn(model, widths=(8,)))
    settings = {"attention_mask": torch.ones(2, 5).long(), "max_new_tokens": 6, "do_sample": False}
    texts = [small.generate(TOKENS[:2, :5], use_cache=cache, eos_token_id=None, **settings) for cache in (True, False)]
    assert texts[0].equal(texts[1])
    assert lw.speed(small, prompt=8, new=4, repeats=1).memory > 0
    assert lw.compare(small, model, TOKENS).kl < 0.1
    assert "bits=8" in repr(small.get_input_embeddings()) and "tied" in repr(small.get_output_embeddings())
