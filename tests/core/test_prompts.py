"""Prompt sets in the formats of the field."""

import json
import os
from pathlib import Path

import polars as pl
import pytest

from fbmem_core.errors import InputError
from fbmem_core.inputs.prompts import Prompt, read_prompts
from fbmem_core.inputs.rows import Rejection

# a folder with the prompt files of NeMo's repository, which are not ours to ship
PUBLISHED = os.environ.get("FBMEM_PROMPT_FILES")


def read(tmp_path, name, content):
    path = tmp_path / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return read_prompts(path)


def error_of(tmp_path, name, content):
    with pytest.raises(InputError) as caught:
        read(tmp_path, name, content)
    text = str(caught.value)
    assert "\n" not in text
    assert str(tmp_path / name) in text
    return text


@pytest.mark.parametrize(("name", "delimiter"), [("a.csv", ","), ("a.csv", ";"), ("a.csv", "\t"), ("a.tsv", "\t")])
def test_csv_is_read_with_any_usual_delimiter(tmp_path, name, delimiter):
    rows = [
        ("prompt_id", "prompt", "kind", "reference_id", "source"),
        ("p1", '"Owl, by ""Mirza""; a\tposter"', "VM", "owl", "https://a.example/1"),
        ("p2", "a cat", "", "", ""),
    ]
    prompts, rejected = read(tmp_path, name, "\n".join(delimiter.join(row) for row in rows) + "\n")
    assert prompts == [
        Prompt("p1", 'Owl, by "Mirza"; a poster', "VM", "owl", "https://a.example/1"),
        Prompt("p2", "a cat", None, None, None),
    ]
    assert rejected == []


@pytest.mark.parametrize("column", ["prompt", "caption", "text", "Prompt", "CAPTION"])
def test_the_column_of_prompts_has_any_of_its_names_in_any_case(tmp_path, column):
    prompts, _ = read(tmp_path, "a.csv", f"{column},x\na cat,1\n")
    assert prompts == [Prompt("0", "a cat")]


def test_a_column_prompt_goes_before_a_column_caption(tmp_path):
    prompts, _ = read(tmp_path, "a.csv", "caption,prompt\nthe caption,the prompt\n")
    assert prompts == [Prompt("0", "the prompt")]


@pytest.mark.parametrize("name", ["a.csv", "a.jsonl", "a.txt"])
def test_a_byte_order_mark_is_no_part_of_the_text(tmp_path, name):
    content = {"a.csv": "prompt\na cat\n", "a.jsonl": '{"prompt": "a cat"}\n', "a.txt": "a cat\n"}[name]
    prompts, rejected = read(tmp_path, name, b"\xef\xbb\xbf" + content.encode())
    assert (prompts, rejected) == ([Prompt("0", "a cat")], [])


@pytest.mark.parametrize("name", ["a.csv", "a.jsonl", "a.txt"])
def test_windows_line_ends_are_no_part_of_the_text(tmp_path, name):
    content = {
        "a.csv": "prompt\r\na cat\r\na dog\r\n",
        "a.jsonl": '{"prompt": "a cat"}\r\n{"prompt": "a dog"}\r\n',
        "a.txt": "a cat\r\na dog\r\n",
    }[name]
    assert read(tmp_path, name, content) == ([Prompt("0", "a cat"), Prompt("1", "a dog")], [])


def test_json_lines_keep_quotes_and_html(tmp_path):
    captions = ['<i>The "Owl"</i> &amp; friends, 5\' tall', "line\u2028separator", "naïve café 猫"]
    objects = [
        {"caption": caption, "index": index, "url": f"https://a.example/{index}", "captions": [caption]}
        for index, caption in enumerate(captions)
    ]
    content = "\n".join(json.dumps(item, ensure_ascii=False) for item in objects)
    assert read(tmp_path, "a.jsonl", content) == (
        [
            Prompt("0", captions[0], source="https://a.example/0"),
            Prompt("1", "line separator", source="https://a.example/1"),
            Prompt("2", captions[2], source="https://a.example/2"),
        ],
        [],
    )


def test_json_lines_that_cannot_be_used_are_named_by_their_number(tmp_path):
    content = '{"prompt": "a cat"}\n\n{"prompt": \n["a dog"]\n{"prompt": "a cow"}\n'
    prompts, rejected = read(tmp_path, "a.jsonl", content)
    assert [prompt.prompt for prompt in prompts] == ["a cat", "a cow"]
    assert [item.item for item in rejected] == ["line 3", "line 4"]
    assert rejected[0].reason.startswith("no JSON: ")
    assert rejected[1].reason == "a JSON object was expected, not list"


def test_parquet_is_read_with_its_types(tmp_path):
    frame = pl.DataFrame({"caption": ["a cat", "a dog", None], "url": ["u0", None, "u2"], "index": [7, 8, 9]})
    frame.write_parquet(tmp_path / "a.parquet")
    prompts, rejected = read_prompts(tmp_path / "a.parquet")
    assert prompts == [Prompt("7", "a cat", source="u0"), Prompt("8", "a dog")]
    assert rejected == [Rejection("row 2", "the prompt of `9` is empty")]


def test_text_holds_a_prompt_a_line(tmp_path):
    prompts, rejected = read(tmp_path, "a.txt", "a cat, by Mirza\n\na dog\u2028of two lines")
    assert prompts == [Prompt("0", "a cat, by Mirza"), Prompt("2", "a dog of two lines")]
    assert rejected == [Rejection("row 1", "the prompt of `1` is empty")]


def test_repeated_ids_and_empty_prompts_are_left_out_under_names_of_their_own(tmp_path):
    content = "prompt_id,prompt\na,a cat\nb,   \na,a dog\na,a cow\nc,a hen\nb,\n"
    prompts, rejected = read(tmp_path, "a.csv", content)
    assert prompts == [Prompt("a", "a cat"), Prompt("c", "a hen")]
    assert rejected == [
        Rejection("row 1", "the prompt of `b` is empty"),
        Rejection("row 2", "the prompt_id `a` comes again"),
        Rejection("row 3", "the prompt_id `a` comes again"),
        Rejection("row 5", "the prompt of `b` is empty"),
    ]


def test_the_same_prompt_may_have_several_ids(tmp_path):
    prompts, rejected = read(tmp_path, "a.csv", "prompt_id,prompt\na,a cat\nb,a cat\n")
    assert (prompts, rejected) == ([Prompt("a", "a cat"), Prompt("b", "a cat")], [])


def test_short_and_long_rows_of_a_csv_do_no_harm(tmp_path):
    prompts, rejected = read(tmp_path, "a.csv", "prompt_id,prompt,kind\na,a cat\nb,a dog,VM,odd,odder\nc\n")
    assert prompts == [Prompt("a", "a cat"), Prompt("b", "a dog", "VM")]
    assert rejected == [Rejection("row 2", "the prompt of `c` is empty")]


@pytest.mark.parametrize(
    ("name", "content", "fragments"),
    [
        ("a.csv", "id,title\n1,a cat\n", ["a column prompt, caption or text", "`id`, `title`", "Rename the column"]),
        ("a.jsonl", '{"title": "a cat"}\n', ["a column prompt, caption or text", "`title`", "Rename the column"]),
        ("a.csv", "prompt\n", ["at least one prompt, but got none (0 rejected)", "Add prompts."]),
        ("a.csv", "", ["at least one prompt, but got none (0 rejected)", "Add prompts."]),
        ("a.txt", "\n\n", ["at least one prompt, but got none (2 rejected)", "Add prompts."]),
        ("a.jsonl", "not json\n", ["at least one prompt, but got none (1 rejected)", "Add prompts."]),
        ("a.csv", b"prompt\ncaf\xe9\n", ["readable .csv text", "Save it anew as UTF-8."]),
        ("a.txt", b"caf\xe9\n", ["readable .txt text", "Save it anew as UTF-8."]),
        ("a.csv", 'prompt\n"a "cat" here"\n', ["readable .csv text", "Save it anew"]),
        ("a.parquet", b"no parquet", ["readable .parquet text", "Save it anew"]),
        ("a.xlsx", b"", ["a csv, tsv, jsonl, parquet or txt file, but got `.xlsx`", "Convert it"]),
        ("prompts", b"", ["a csv, tsv, jsonl, parquet or txt file, but got ``", "Convert it"]),
    ],
)
def test_an_unusable_file_is_one_line_that_names_it_and_the_cure(tmp_path, name, content, fragments):
    text = error_of(tmp_path, name, content)
    for fragment in fragments:
        assert fragment in text


def test_a_missing_file_is_named_with_the_cure(tmp_path):
    with pytest.raises(InputError, match=r"a prompt file, but got no such file in .*a\.csv\. Give a csv"):
        read_prompts(tmp_path / "a.csv")


@pytest.mark.parametrize(
    ("name", "first", "kinds"),
    [
        (
            "nemo_memorized_laion_prompts.csv",
            Prompt(
                "1030727993",
                "The No Limits Business Woman Podcast",
                "VM",
                None,
                "https://onlinecoach1.hipcast.com/albumart/1000_1618923228.jpg",
            ),
            {"VM": 112, "TM": 388},
        ),
        (
            "nemo_non_memorized_laion_prompts.csv",
            Prompt(
                "396",
                "Photo pour Japanese pagoda and old house in Kyoto at twilight - image libre de droit",
                None,
                None,
                "https://images.assetsdelivery.com/thumbnails/torsakarin/torsakarin1507/torsakarin150700324.jpg",
            ),
            {None: 500},
        ),
    ],
)
def test_the_published_prompt_files_are_read_whole(name, first, kinds):
    if PUBLISHED is None:
        pytest.skip(f"set FBMEM_PROMPT_FILES to a folder that holds {name} of NeMo's repository")
    path = Path(PUBLISHED) / name
    prompts, rejected = read_prompts(path)
    assert prompts[0] == first
    assert rejected == []
    found = [prompt.kind for prompt in prompts]
    assert {kind: found.count(kind) for kind in kinds} == kinds
    assert len(found) == 500
