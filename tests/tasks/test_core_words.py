import pytest
import torch
from tiny import clip_tokenizer, t5_tokenizer
from tokenizers import pre_tokenizers

from evaluators.geneval.prompts import MINI, OFFICIAL, color_attr, colors, counting, generate, position, two_object
from star.common.errors import UserError
from star.method.tokens import token_columns
from star.tasks import sign_words
from star.tasks.core_words import content_words, of_quote, of_record

CLIP_WORDS = ("photo", "cat", "cats", "traffic", "light", "blue")
T5_PIECES = ("▁photo", "▁cat", "▁traffic", "▁lights", "▁blue")
CLIP_LENGTH, T5_LENGTH = 24, 30


def words(rule, prompt, *record):
    return [prompt[start:end] for start, end in rule(prompt, *record)]


def columns(prompt, spans, *, clip_length=CLIP_LENGTH, t5_length=T5_LENGTH, which="both", second=None):
    """The tokens at the columns that count, CLIP's and T5's."""
    clip, t5 = clip_tokenizer(CLIP_WORDS), t5_tokenizer(T5_PIECES)
    mask = token_columns(
        (clip, second or clip, t5), [prompt], [spans], clip_length=clip_length, t5_length=t5_length, columns=which
    )
    assert mask.dtype == torch.bool and mask.shape == (1, clip_length + t5_length)
    parts = []
    for tokenizer, row in ((clip, mask[0, :clip_length]), (t5, mask[0, clip_length:])):
        ids = tokenizer(prompt, padding="max_length", max_length=len(row), truncation=True).input_ids
        tokens = tokenizer.convert_ids_to_tokens(ids)
        parts.append([token for token, chosen in zip(tokens, row, strict=True) if chosen])
    return parts


@pytest.mark.parametrize(
    ("record", "expected"),
    [
        (two_object("cat", "traffic light"), ["cat", "traffic light"]),
        (counting("bench", 3), ["three", "benchs"]),
        (counting("bus", 4), ["four", "buses"]),
        (counting("traffic light", 2), ["two", "traffic lights"]),
        (colors("teddy bear", "orange"), ["orange", "teddy bear"]),
        (colors("orange", "orange"), ["orange", "orange"]),
        (position("hot dog", "left of", "dog"), ["hot dog", "left of", "dog"]),
        (color_attr("cup", "red", "tie", "black"), ["red", "cup", "black", "tie"]),
    ],
)
def test_core_words_of_geneval(record, expected):
    assert words(of_record, record["prompt"], record) == expected


def test_core_words_of_geneval_are_whole_words_in_any_case():
    record = two_object("cat", "tie")
    assert words(of_record, "A Cat catches TIES, neat cattle untied", record) == ["Cat", "TIES"]


@pytest.mark.parametrize("count", ["5", "five"])
def test_counts_beyond_four_are_found(count):
    record = {"include": [{"class": "cat", "count": 5}]}
    assert words(of_record, f"{count} cats", record) == [count, "cats"]


def test_all_official_and_mini_prompts_have_their_core_words():
    fixed = {"a", "an", "photo", "of", "and"}
    for record in (*generate(OFFICIAL), *generate(MINI)):
        prompt = record["prompt"]
        rest = prompt
        for start, end in reversed(of_record(prompt, record)):
            rest = rest[:start] + rest[end:]
        assert set(rest.split()) <= fixed, prompt


def test_core_words_of_ocr_are_the_first_quoted_text():
    assert words(of_quote, 'a sign "Open Now" beside "Closed"') == ["Open Now"]
    assert words(of_quote, 'a sign "Open" beside a "') == ["Open"]
    assert words(of_quote, sign_words.prompt("STAR")) == ["STAR"]


def test_core_words_of_pickscore_are_content_words():
    prompt = "The dog's house, seen from a half-open door, isn't red & it's 2 PM"
    expected = ["dog", "house", "seen", "half", "open", "door", "isn", "red", "2", "PM"]
    assert words(content_words, prompt) == expected


def test_the_word_for_the_picture_itself_is_no_core_word_of_pickscore():
    assert words(content_words, "a Photo of a red ring, picture by night") == ["red", "ring", "night"]
    assert words(content_words, "a photo") == ["photo"], "but where there is nothing else"


def test_single_and_multi_token_words():
    record = two_object("cat", "zebra")
    clip, t5 = columns(record["prompt"], of_record(record["prompt"], record))
    assert clip == ["cat</w>", "z", "e", "b", "r", "a</w>"]
    assert t5 == ["▁cat", "z", "e", "b", "r", "a"]  # not the bare ▁ before the z


def test_plural_and_two_word_classes():
    record = counting("traffic light", 2)
    clip, t5 = columns(record["prompt"], of_record(record["prompt"], record))
    assert clip == ["t", "w", "o</w>", "traffic</w>", "ligh", "t", "s</w>"]
    assert t5 == ["t", "w", "o", "▁traffic", "▁lights"]
    record = counting("cat", 2)
    clip, t5 = columns(record["prompt"], of_record(record["prompt"], record))
    assert clip == ["t", "w", "o</w>", "cats</w>"]
    assert t5 == ["t", "w", "o", "▁cat", "s"]


def test_clip_tokens_of_upper_case_words_and_of_odd_spaces():
    prompt = "a  photo of\ta CAT  here"
    clip, t5 = columns(prompt, [(14, 17)])
    assert prompt[14:17] == "CAT"
    assert clip == ["cat</w>"]
    assert t5 == ["C", "A", "T"]


def test_quotes_do_not_count():
    prompt = 'a "blue cat"'
    clip, t5 = columns(prompt, of_quote(prompt))
    assert clip == ["blue</w>", "cat</w>"]
    assert t5 == ["b", "l", "u", "e", "▁cat"]


def test_a_token_that_reaches_beyond_its_span_counts_but_its_space_does_not():
    assert columns("blue cats", [(5, 8)]) == [["cats</w>"], ["▁cat"]]
    assert columns("blue cat", [(0, 5)]) == [["blue</w>"], ["▁blue"]]


def test_tokens_that_begin_with_their_space_do_not_count_for_it():
    """Some T5 tokenizer files split at the word mark only, so that a piece's offsets include the space before it."""
    clip, t5 = clip_tokenizer(CLIP_WORDS), t5_tokenizer(T5_PIECES)
    t5.backend_tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="always")
    assert t5("blue cat", return_offsets_mapping=True).offset_mapping[:2] == [(0, 4), (4, 8)]
    mask = token_columns((clip, clip, t5), ["blue cat"], [[(0, 5)]], clip_length=4, t5_length=4, columns="t5")
    assert mask[0, 4:].tolist() == [True, False, False, False]


def test_added_and_truncated_tokens_never_count():
    prompt = "cat a blue cat"
    everything = [(0, len(prompt))]
    clip, t5 = columns(prompt, everything)
    assert clip == ["cat</w>", "a</w>", "blue</w>", "cat</w>"]
    assert t5 == ["▁cat", "a", "▁blue", "▁cat"]
    clip, t5 = columns(prompt, everything, clip_length=5, t5_length=4)
    assert clip == ["cat</w>", "a</w>", "blue</w>"]
    assert t5 == ["▁cat", "a"]
    padded_otherwise = clip_tokenizer(CLIP_WORDS, pad="!")
    assert columns(prompt, everything, second=padded_otherwise)[0] == ["cat</w>", "a</w>", "blue</w>", "cat</w>"]


def test_tokens_that_stand_behind_their_padding_have_its_columns():
    clip, t5 = clip_tokenizer(CLIP_WORDS), t5_tokenizer(T5_PIECES)
    clip.padding_side = "left"
    mask = token_columns((clip, clip, t5), ["a blue cat"], [[(7, 10)]], clip_length=9, t5_length=4, columns="clip")
    assert mask.nonzero().tolist() == [[0, 7]]  # the last is the end


def test_columns_of_one_encoder_only():
    assert columns("a blue cat", [(7, 10)], which="clip") == [["cat</w>"], []]
    assert columns("a blue cat", [(7, 10)], which="t5") == [[], ["▁cat"]]


def test_clip_tokenizers_that_split_differently_are_united():
    clip, t5 = columns("zoo cat", [(4, 7)], second=clip_tokenizer(("zoo", "cat")))
    assert clip == ["o", "cat</w>"]  # the second tokenizer's cat stands at the column of the first one's first o


def test_a_batch_is_its_prompts_one_by_one():
    prompts = ["a photo of a cat", "traffic light and zebra"]
    spans = [[(13, 16)], [(0, 13), (18, 23)]]
    tokenizers = (clip_tokenizer(CLIP_WORDS), clip_tokenizer(CLIP_WORDS), t5_tokenizer(T5_PIECES))
    lengths = {"clip_length": CLIP_LENGTH, "t5_length": T5_LENGTH}
    both = token_columns(tokenizers, prompts, spans, **lengths)
    alone = [token_columns(tokenizers, [prompts[i]], [spans[i]], **lengths) for i in range(2)]
    assert torch.equal(both, torch.cat(alone))


def test_prompts_that_repeat_are_looked_at_once_each_with_its_own_words():
    """The same text may have other core words."""
    seen = []

    def counted(prompts, **options):
        seen.append(prompts)
        return t5(prompts, **options)

    t5 = t5_tokenizer(T5_PIECES)
    counted.padding_side, counted.convert_ids_to_tokens = t5.padding_side, t5.convert_ids_to_tokens
    prompts, spans = ["a cat", "zebra", "a cat", "a cat"], [[(2, 5)], [(0, 5)], [(0, 1)], [[2, 5]]]
    lengths = {"clip_length": CLIP_LENGTH, "t5_length": T5_LENGTH, "columns": "t5"}
    mask = token_columns((None, None, counted), prompts, spans, **lengths)
    assert seen == [["a cat", "zebra", "a cat"]]
    alone = [token_columns((None, None, t5), [prompt], [own], **lengths) for prompt, own in zip(prompts, spans, strict=True)]
    assert torch.equal(mask, torch.cat(alone)) and not torch.equal(mask[0], mask[2])


def test_saved_and_loaded_tokenizers_give_the_same_columns(tmp_path):
    built = (clip_tokenizer(CLIP_WORDS), clip_tokenizer(CLIP_WORDS, pad="!"), t5_tokenizer(T5_PIECES))
    for place, tokenizer in enumerate(built):
        tokenizer.save_pretrained(tmp_path / str(place))
    loaded = [type(tokenizer).from_pretrained(tmp_path / str(place)) for place, tokenizer in enumerate(built)]
    prompt, spans = "a  photo of two TRAFFIC lights", [(12, 15), (16, 30)]
    masks = [token_columns(each, [prompt], [spans], clip_length=24, t5_length=30) for each in (built, loaded)]
    assert torch.equal(*masks)


def test_a_pipeline_without_t5_has_clip_columns_only():
    clip = clip_tokenizer(CLIP_WORDS)
    mask = token_columns((clip, clip, None), ["a cat"], [[(2, 5)]], clip_length=8, t5_length=4, columns="clip")
    assert mask.nonzero().tolist() == [[0, 2]]
    with pytest.raises(UserError, match="does not have; set columns=clip"):
        token_columns((clip, clip, None), ["a cat"], [[(2, 5)]], clip_length=8, t5_length=4)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: of_record("a photo of a dog", two_object("dog", "cat")), "'a photo of a dog' .* 'cat'"),
        (lambda: of_record("a photo of cats", counting("cat", 3)), "'a photo of cats' .* '3'"),
        (lambda: of_quote("a sign that says 'OPEN'"), "no text in double quotes"),
        (lambda: of_quote('a sign that says " "'), "no text in double quotes"),
        (lambda: of_quote('a sign that says "" and "OPEN"'), "no text in double quotes"),
        (lambda: of_quote('a sign that says "OPEN'), "no text in double quotes"),
        (lambda: content_words("it is ... the"), "no content word"),
        (lambda: columns("a blue cat", [(7, 10)], clip_length=4, t5_length=3), r"'a blue cat': .* \('cat'\)"),
        (lambda: columns("a blue cat", []), r"'a blue cat': .* \(none\)"),
    ],
)
def test_prompts_without_core_words_are_named(call, message):
    with pytest.raises(UserError, match=message):
        call()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: columns("a cat", [(2, 5)], which="clip_l"), "clip, t5, both"),
        (lambda: token_columns((None,) * 3, ["a", "b"], [[]], clip_length=4, t5_length=4), "2 prompts"),
    ],
)
def test_bad_calls_are_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()
