"""Prompt sets of the package, and the files of known benchmarks in their own layouts."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pixart.errors import UsageError
from pixart.evaluation.prompt_sets import SETS, Prompt, read_prompts


def refusal(act, *given):
    with pytest.raises(UsageError) as refused:
        act(*given)
    return str(refused.value)


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


def test_geneval_keeps_what_its_scripts_look_for(tmp_path):
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
    file.write_text("# not a comment\n\n[not a heading]\r  a cat  \n")
    assert [prompt.text for prompt in read_prompts(file)] == ["# not a comment", "[not a heading]", "a cat"]


@pytest.mark.parametrize(
    ("name", "content", "line"),
    [
        ("a.txt", b"", None),
        ("a.txt", b" \n\n", None),
        ("a.txt", b"fine\nbad\xff\n", 2),
        ("a.txt", b"fine\n\na\0b\n", 3),
        ("a.txt", b"fine\n" + b"x" * 30_000, 2),
        ("a.jsonl", b'{"prompt": "a"}\n{"prompt": 7}\n\n{oops\n', 2),
        ("a.jsonl", b'{"prompt": "a"}\n\n{oops\n', 3),
        ("a.jsonl", b"[1]\n", 1),
        ("a.jsonl", b'{"prompt": "a"}\n{}\n', 2),
        ("a.jsonl", b"[" * 100_000, 1),
        ("a.tsv", b"Prompt\tCategory\none\tA\ntwo\n", 3),
        ("a.csv", b"Prompts,Category\n,Colors\n", 2),
        ("a.csv", b"Title,Category\na,b\n", 2),
        ("a.csv", b'Prompts\n"open', 2),
        ("a.csv", b"", None),
        ("a.csv", b"Prompts\n", None),
        ("a.pdf", b"%PDF", None),
    ],
)
def test_malformed_files_are_refused_with_the_number_of_the_line(tmp_path, name, content, line):
    file = tmp_path / name
    file.write_bytes(content)
    refused = refusal(read_prompts, file)
    assert str(file) in refused and len(refused) < 2000
    assert line is None or f"line {line}" in refused


def test_what_is_not_there(tmp_path):
    assert "general" in refusal(read_prompts, "genral")
    assert "none.txt" in refusal(read_prompts, tmp_path / "none.txt")
    refusal(read_prompts, tmp_path)


@settings(max_examples=50)
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
