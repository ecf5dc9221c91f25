"""Windows of tokens: the right number, seeded, without overlap, and splits apart."""

import copy
import hashlib
import json

import layerwise as lw
import pandas as pd
import pytest
import torch
from layerwise import world
from layerwise.text import published
from layerwise.text.corpora import CORPORA, check_tokens
from layerwise.text.hub import HubError
from layerwise.world import data
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast


@pytest.fixture(scope="module")
def other():
    """A tokenizer that is not the world's: one token per word of "w0 w1 ... w999", and one for all other words."""
    vocabulary = {"<end>": 0, "<unk>": 1} | {f"w{i}": i + 2 for i in range(1000)}
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<end>", unk_token="<unk>")


@pytest.fixture
def numbered(tmp_path):
    """A text of 1,000 different words, ten to a line."""
    path = tmp_path / "words.txt"
    path.write_text("\n".join(" ".join(f"w{i}" for i in range(start, start + 10)) for start in range(0, 1000, 10)))
    return path


@pytest.mark.parametrize("name", [name for name in CORPORA if name.startswith("world")])
def test_world_by_name(name):
    found = lw.tokens(world.tokenizer(), name, n=2, length=40)
    assert found.dtype == torch.int64 and found.shape == (2, 40)
    assert (found[:, 0] == world.tokenizer().eos_token_id).all()
    check_tokens(found, 2048)


def test_world_is_what_the_generator_gives():
    rows, _ = data.rows("test", 3, length=50, seed=7, kind="sums")
    assert lw.tokens(world.tokenizer(), "world/sums", "test", n=3, length=50, seed=7).tolist() == rows.tolist()


def test_seeds_and_splits_give_other_text_and_the_same_again():
    def draw(split="calibration", seed=0):
        return lw.tokens(world.tokenizer(), split=split, n=2, length=64, seed=seed).tolist()

    assert draw() == draw()
    assert draw() != draw(seed=1)
    assert draw() != draw("test")


def test_world_for_another_tokenizer_is_text_read_by_that_one(other):
    text = PreTrainedTokenizerFast(tokenizer_object=world.tokenizer().backend_tokenizer, eos_token="<|endoftext|>")
    text.add_tokens(["<extra>"])  # reads as the world's does, but is another tokenizer
    found = lw.tokens(text, "world/sums", n=2, length=60)
    assert found.shape == (2, 60) and (found[:, 0] == text.eos_token_id).all()  # which it begins text with
    assert text.decode(found[:, 1:].flatten()).startswith(next(data.documents("calibration", kind="sums"))[0])
    assert lw.tokens(other, n=2, length=30).max() <= 1  # no word of the world is in that vocabulary


def test_windows_of_a_file_are_whole_and_apart(other, numbered):
    found = lw.tokens(other, numbered, n=7, length=100, seed=3)
    assert found.shape == (7, 100)
    words = found[found > 1]
    assert len(words.unique()) == len(words)  # every word is there once in the text: no window overlaps another
    inside = [window for window in found if (window > 1).all()]
    assert inside and all((window.diff() == 1).all() for window in inside)


def test_splits_of_a_file_have_nothing_in_common(other, numbered):
    calibration = lw.tokens(other, numbered, "calibration", n=8, length=100)
    test = lw.tokens(other, numbered, "test", n=1, length=190)
    assert len(test[test > 1].unique()) > 180
    assert set(calibration[calibration > 1].tolist()).isdisjoint(test[test > 1].tolist())


def test_seed_draws_among_the_windows_of_a_file(other, numbered):
    draws = {tuple(lw.tokens(other, numbered, n=2, length=90, seed=seed).flatten().tolist()) for seed in range(5)}
    assert len(draws) == 5


def test_json_lines_are_documents(other, tmp_path):
    path = tmp_path / "some.jsonl"
    path.write_text("".join(json.dumps({"text": f"w{i} w{i}"}) + "\n" for i in range(10)))
    found = lw.tokens(other, path, "test", n=1, length=6).flatten().tolist()
    assert found == [10, 10, 0, 11, 11, 0]  # the last fifth, each document with its end


def test_files_are_read_with_a_byte_order_mark_and_whatever_the_case_of_their_suffix(other, tmp_path):
    (tmp_path / "some.jsonl").write_text(5 * '{"text": "w3 w4"}\n', encoding="utf-8-sig")
    (tmp_path / "some.TXT").write_text("w3 w4 " * 9, encoding="utf-8-sig")
    for name, count in (("some.jsonl", 12), ("some.TXT", 16)):  # all tokens of the calibration split, one a window
        assert set(lw.tokens(other, tmp_path / name, n=count, length=1).flatten().tolist()) == {0, 5, 6}


@pytest.mark.parametrize("name", ["some.txt", "some.jsonl"])
def test_another_encoding_names_the_byte_and_where_it_is(other, tmp_path, name):
    (tmp_path / name).write_bytes('{"text": "café w1"}'.encode("latin-1"))
    with pytest.raises(ValueError, match=rf"{name} is not UTF-8: byte 0xe9 at position 13. Convert it"):
        lw.tokens(other, tmp_path / name, n=1, length=2)


def test_text_too_short_says_what_there_is_and_what_is_needed(other, numbered):
    with pytest.raises(ValueError, match=r"calibration split .* 20 windows of 50 tokens need 1000, and it has 8\d\d"):
        lw.tokens(other, numbered, n=20, length=50)
    numbered.write_text("")
    with pytest.raises(ValueError, match="test split .* need 256, and it has 0, "):
        lw.tokens(other, numbered, "test", n=1)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"name": "wrold"}, r"no corpus 'wrold'. Did you mean 'world'\?.*world/people.*\.txt or \.jsonl"),
        ({"name": "nowhere.txt"}, "there is no file 'nowhere.txt'"),
        ({"split": "train"}, "there is no split 'train': take one of 'calibration', 'test'"),
        ({"name": "c4", "split": "validation"}, "there is no split 'validation': take one of 'calibration', 'test'"),
        ({"n": 0}, "cannot draw 0 windows of 256 tokens"),
    ],
)
def test_wrong_arguments_say_what_would_be_right(other, arguments, message):
    with pytest.raises(ValueError, match=message):
        lw.tokens(other, **arguments)


def test_json_without_text_names_the_record(other, tmp_path):
    path = tmp_path / "some.jsonl"
    path.write_text('{"text": "w1"}\n{"words": "w2"}\n{"text": "w3"}\n{"text": "w4"}\n{"text": "w5"}\n{"text": "w6"}\n')
    with pytest.raises(ValueError, match='some.jsonl, line 2 is not a JSON object with a string "text"'):
        lw.tokens(other, path, n=1, length=2)


def test_no_tokenizer():
    with pytest.raises(ValueError, match="there is no tokenizer"):
        lw.tokens(None)


@pytest.fixture(scope="module")
def beginning(other):
    """The same tokenizer, which begins text with two tokens of its own and ends it with a third."""
    backend = Tokenizer.from_str(other.backend_tokenizer.to_str())
    backend.add_special_tokens(["<s>", "<t>"])
    ids = [(token, backend.token_to_id(token)) for token in ("<s>", "<t>", "<end>")]
    backend.post_processor = processors.TemplateProcessing(single="<s> <t> $A <end>", special_tokens=ids)
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<end>", unk_token="<unk>", bos_token="<s>")


def test_every_window_begins_with_what_the_tokenizer_begins_text_with(beginning, numbered):
    found = lw.tokens(beginning, numbered, n=7, length=100)
    assert found.shape == (7, 100) and found.dtype == torch.int64
    assert (found[:, :2] == torch.tensor([1002, 1003])).all() and (found[:, 2:] < 1002).all()
    without = lw.tokens(beginning, numbered, n=7, length=98, bos=False)
    assert torch.equal(found[:, 2:], without)  # the same text, in windows shorter by two
    with pytest.raises(ValueError, match="1 windows of 2 tokens: .* at least 1, and that with 2 that begins it"):
        lw.tokens(beginning, numbered, n=1, length=2)


def test_rows_say_what_else_a_draw_depends_on(beginning, other, numbered):
    assert lw.corpora.about(world.tokenizer(), "world/sums") == lw.corpora.about(other, "wikitext2") == {}
    assert lw.corpora.about(beginning, "world") == lw.corpora.about(beginning, "wikitext2") == {"bos": True}
    of = lw.corpora.about(beginning, numbered, bos=False)
    assert of == {"bos": False, "file": hashlib.sha256(numbered.read_bytes()).hexdigest()[:16]}


def write(folder, file, rows):
    """Rows as the Hub has them: parquet, or JSON lines that are compressed."""
    path = folder / file
    path.parent.mkdir(parents=True, exist_ok=True)
    frame = pd.DataFrame(rows)
    frame.to_parquet(path) if path.suffix == ".parquet" else frame.to_json(path, orient="records", lines=True)


@pytest.fixture(params=published.CORPORA)
def corpus(request, standin, tmp_path):
    """Each published corpus, of 60 rows of 50 words; its words in the test split begin with another number."""
    found = published.CORPORA[request.param]
    standin.revisions = {found.revision}
    standin.repos[found.dataset] = tmp_path / "corpus"
    for split, file in found.files.items():
        first = 500 if split == "test" else 0
        rows = [{found.text: " ".join(f"w{(first + i + j) % 1000}" for j in range(50))} for i in range(60)]
        write(tmp_path / "corpus", file, rows)
    return request.param


def test_published_corpora_are_read_from_the_hub(corpus, other, standin):
    found = {split: lw.tokens(other, corpus, split, n=5, length=100) for split in ("calibration", "test")}
    for windows in found.values():
        assert windows.shape == (5, 100) and not (windows == other.unk_token_id).any()
    assert not torch.equal(*found.values())
    requests = len(standin.asked)
    assert torch.equal(lw.tokens(other, corpus, n=5, length=100), found["calibration"])
    assert not any(path.startswith("GET") for path in standin.asked[requests:]), "read from the cache"
    assert not torch.equal(lw.tokens(other, corpus, n=5, length=100, seed=1), found["calibration"])
    with pytest.raises(ValueError, match=rf"the test split of '{corpus}' is too short: 128 windows of 2048 tokens"):
        lw.tokens(other, corpus, "test")  # the papers' setting


def test_windows_are_no_longer_than_what_the_tokenizer_says_its_model_takes(corpus, other):
    short = copy.deepcopy(other)
    short.model_max_length = 64
    assert lw.tokens(short, corpus, n=2).shape == (2, 64)
    assert lw.tokens(other, "world", n=1).shape == (1, 256)
    with pytest.raises(ValueError, match="1000 windows of 2048 tokens"):
        lw.tokens(other, corpus, n=1000)


@pytest.fixture
def copies(tmp_path, monkeypatch):
    """A folder with WikiText-2's validation split as parquet and as the lines of a file, of 60 lines, some blank."""
    folder = tmp_path / "copies"
    lines = ["" if i % 4 == 0 else " " + " ".join(f"w{i + j}" for j in range(50)) + " \n" for i in range(60)]
    parquet = "wikitext-2-raw-v1/validation-00000-of-00001.parquet"
    write(folder, parquet, [{"text": line} for line in lines])
    (folder / "wiki.valid.raw").write_text("".join(line or " \n" for line in lines))
    for name in (parquet, "wiki.valid.raw"):
        monkeypatch.setitem(published.SHA256, name, hashlib.sha256((folder / name).read_bytes()).hexdigest())
    return folder


def test_a_copy_of_a_published_file_gives_what_the_hub_gives(copies, other, standin):
    found = published.CORPORA["wikitext2"]
    standin.revisions, standin.repos[found.dataset] = {found.revision}, copies
    drawn = {"split": "validation", "n": 5, "length": 100}
    from_hub = lw.tokens(other, "wikitext2", **drawn)
    standin.point_at("http://127.0.0.1:9")
    assert torch.equal(lw.tokens(other, "wikitext2", data=copies, **drawn), from_hub)
    parquet = copies / found.files["validation"]
    parquet.rename(copies / parquet.name)  # without the folder that it has on the Hub
    assert torch.equal(lw.tokens(other, "wikitext2", data=copies, **drawn), from_hub)
    text = next(found.documents("validation", seed=0, data=copies))
    (copies / parquet.name).unlink()
    assert next(found.documents("validation", seed=0, data=copies)) == text  # of the lines, blanks and ends included
    assert torch.equal(lw.tokens(other, "wikitext2", data=copies, **drawn), from_hub)


def test_a_copy_that_cannot_be_told_from_another_text_is_refused(copies, other):
    drawn = {"data": copies, "n": 5, "length": 100}
    with pytest.raises(ValueError, match=r"no wikitext-2-raw-v1/test.*\.parquet or wiki\.test\.raw; .* wiki\.valid"):
        lw.tokens(other, "wikitext2", "test", **drawn)
    (copies / "wiki.test.raw").write_text("w1 w2 w3")
    digest, published_as = hashlib.sha256(b"w1 w2 w3").hexdigest(), published.SHA256["wiki.test.raw"]
    with pytest.raises(ValueError, match=f"is not the wiki.test.raw .* its SHA-256 is {digest}, not {published_as}"):
        lw.tokens(other, "wikitext2", "test", **drawn)
    with pytest.raises(ValueError, match="the hash of penn_treebank/test/0000.parquet .* isn't known here"):
        lw.tokens(other, "ptb", "test", **drawn)
    with pytest.raises(ValueError, match="data has copies of wikitext2, .* and 'world' is none of these"):
        lw.tokens(other, "world", "test", **drawn)


def test_rows_of_one_long_text_are_joined_and_documents_are_not(other, standin, tmp_path):
    ends = {}
    for name, found in published.CORPORA.items():
        standin.revisions = {found.revision}
        standin.repos[found.dataset] = tmp_path / name
        for file in found.files.values():
            write(tmp_path / name, file, [{found.text: f"w{i} w{i + 1} w{i + 2}"} for i in range(100)])
        ends[name] = (lw.tokens(other, name, n=4, length=10) == other.eos_token_id).sum().item()
    assert ends == {"wikitext2": 0, "ptb": 0, "pg19": 0, "c4": 10, "alpaca": 10}


def test_splits_of_a_corpus_of_one_file_have_no_row_in_common(other, standin, tmp_path):
    found = published.CORPORA["alpaca"]
    standin.revisions, standin.repos[found.dataset] = {found.revision}, tmp_path / "alpaca"
    write(tmp_path / "alpaca", found.files["test"], [{"text": f"w{i}"} for i in range(100)])
    splits = [
        set(lw.tokens(other, "alpaca", split, n=10, length=4).flatten().tolist()) for split in ("test", "calibration")
    ]
    assert splits[0] & splits[1] == {other.eos_token_id}


def test_a_published_corpus_without_a_network_says_so(other, standin):
    standin.point_at("http://127.0.0.1:9")
    with pytest.raises(HubError, match="the Hub can't be reached, and revision b08.* of Salesforce/wikitext is not in"):
        lw.tokens(other, "wikitext2")
