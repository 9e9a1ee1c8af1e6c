"""Prompt sets of the package, and the files of known benchmarks in their own layouts."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pixart.errors import UsageError
from pixart.evaluation.prompt_sets import SETS, Prompt, read_prompts


def refusal(act, *given):
    with pytest.raises(UsageError) as said:
        act(*given)
    return str(said.value)


def test_sets_have_the_sizes_of_the_articles_tables_and_no_prompt_twice():
    sizes = {name: len(read_prompts(name)) for name in SETS}
    assert sizes == {"general": 50, "more": 33, "alignment": 20, "styles": 25}
    everything = [prompt.text for name in SETS for prompt in read_prompts(name)]
    assert len(set(everything)) == len(everything)
    for name, size in sizes.items():
        assert SETS[name].startswith(str(size)) or name == "styles"
        assert {prompt.set for prompt in read_prompts(name)} == {name}


def test_alignment_and_styles_have_the_articles_kinds():
    kinds = {"colour", "shape", "texture", "spatial", "counting", "complex"}
    assert {prompt.category for prompt in read_prompts("alignment")} == kinds
    styles = [prompt.category for prompt in read_prompts("styles")]
    assert [styles.count(name) for name in dict.fromkeys(styles)] == [5] * 5


def test_parti_prompts(tmp_path):
    file = tmp_path / "PartiPrompts.tsv"
    head = "Prompt\tCategory\tChallenge\tNote\n"
    file.write_text(head + 'bond\tAbstract\tBasic\tBiology\n"A B" on a door\tAnimals\tQuantity\t\n')
    assert read_prompts(file) == [
        Prompt("bond", "PartiPrompts", "Abstract", {"Challenge": "Basic", "Note": "Biology"}),
        Prompt('"A B" on a door', "PartiPrompts", "Animals", {"Challenge": "Quantity", "Note": ""}),
    ]


def test_geneval_keeps_what_must_be_seen(tmp_path):
    file = tmp_path / "evaluation_metadata.jsonl"
    include = [{"class": "bench", "count": 1}]
    file.write_text(json.dumps({"tag": "single_object", "include": include, "prompt": "a photo of a bench"}) + "\n")
    assert read_prompts(str(file)) == [
        Prompt("a photo of a bench", "evaluation_metadata", "single_object", {"include": include})
    ]


def test_compbench_folder_has_a_category_for_each_file(tmp_path):
    (tmp_path / "color_val.txt").write_text("a green bench and a blue bowl\n\na red car\r\n")
    (tmp_path / "3d_spatial_val.txt").write_text("a lamp in front of a wall")
    assert [(prompt.text, prompt.category) for prompt in read_prompts(tmp_path)] == [
        ("a lamp in front of a wall", "3d_spatial"),
        ("a green bench and a blue bowl", "color"),
        ("a red car", "color"),
    ]


def test_drawbench_with_a_prompt_over_two_lines(tmp_path):
    file = tmp_path / "drawbench.csv"
    file.write_text('﻿Prompts,Category\nA red car.,Colors\n"One cat,\nand two dogs.",Counting\n', encoding="utf-8")
    assert [(prompt.text, prompt.category) for prompt in read_prompts(file)] == [
        ("A red car.", "Colors"),
        ("One cat,\nand two dogs.", "Counting"),
    ]


def test_plain_text_is_a_prompt_a_line_and_nothing_else(tmp_path):
    file = tmp_path / "mine.txt"
    file.write_text("# not a comment\n\n[not a heading]\n  a cat  \n")
    assert [prompt.text for prompt in read_prompts(file)] == ["# not a comment", "[not a heading]", "a cat"]


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("a.txt", b"", "holds no prompts"),
        ("a.txt", b" \n\n", "holds no prompts"),
        ("a.txt", b"fine\nbad\xff\n", "line 2 is not UTF-8"),
        ("a.txt", b"fine\n\na\0b\n", "line 3 has a NUL"),
        ("a.txt", b"fine\n" + b"x" * 30_000, "line 2 cannot be used: the prompt is 30,000 characters long"),
        ("a.jsonl", b'{"prompt": "a"}\n{"prompt": 7}\n\n{oops\n[1]\n{}\n', "line 2 has 7 as its prompt"),
        ("a.jsonl", b'{"prompt": "a"}\n{"prompt": 7}\n\n{oops\n[1]\n{}\n', "line 4 is not JSON"),
        (
            "a.jsonl",
            b'{"prompt": "a"}\n{"prompt": 7}\n\n{oops\n[1]\n{}\n',
            "line 5 is not a JSON object; line 6 has",
        ),
        ("a.jsonl", b"[" * 100_000, "line 1 is not JSON"),
        ("a.jsonl", b"{\n" * 9, "line 5 is not JSON (Expecting property name enclosed in double quotes); and 4 more"),
        ("a.tsv", b"Prompt\tCategory\none\tA\ntwo\n", "line 3 has 1 cells where the head has 2"),
        ("a.csv", b"Prompts,Category\n,Colors\n", "line 2 has no text as its Prompts"),
        ("a.csv", b"Title,Category\na,b\n", "line 1 has no column of prompts"),
        ("a.csv", b'Prompts\n"open', "line 2 cannot be read"),
        ("a.csv", b"", "holds no prompts"),
        ("a.csv", b"Prompts\n", "holds no prompts"),
        ("a.pdf", b"%PDF", "not .pdf"),
    ],
)
def test_malformed_files_are_refused_with_line_numbers(tmp_path, name, content, said):
    file = tmp_path / name
    file.write_bytes(content)
    assert said in refusal(read_prompts, file)


def test_what_is_not_there(tmp_path):
    assert 'Did you mean "general"?' in refusal(read_prompts, "genral")
    assert "There is no prompt file" in refusal(read_prompts, tmp_path / "none.txt")
    assert "without .txt files" in refusal(read_prompts, tmp_path)


@given(
    st.sampled_from(["a.txt", "a.jsonl", "a.csv", "a.tsv"]),
    st.one_of(st.binary(max_size=300), st.text(max_size=200).map(lambda text: text.encode("utf-8", "replace"))),
)
def test_any_bytes_are_prompts_or_one_sentence(tmp_path_factory, name, content):
    file = tmp_path_factory.getbasetemp() / name
    file.write_bytes(content)
    try:
        assert all(prompt.text.strip() for prompt in read_prompts(file))
    except UsageError as error:
        assert str(file) in str(error) and len(str(error)) < 2000
