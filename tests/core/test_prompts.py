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
        Prompt(
            "p1",
            'Owl, by "Mirza"; a poster',
            "VM",
            "owl",
            "https://a.example/1",
            reference_ids=("owl",),
        ),
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
            Prompt(str(n), text, source=f"https://a.example/{n}", urls=(f"https://a.example/{n}",), source_index=str(n))
            for n, text in enumerate([captions[0], "line separator", captions[2]])
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
    assert prompts == [Prompt("7", "a cat", source="u0", source_index="7"), Prompt("8", "a dog", source_index="8")]
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


def test_a_short_row_of_a_csv_lacks_its_last_cells_and_a_long_one_is_left_out(tmp_path):
    prompts, rejected = read(tmp_path, "a.csv", "prompt_id,prompt,kind\na,a cat\nb,a dog,VM,odd,odder\nc\n")
    assert prompts == [Prompt("a", "a cat")]
    assert rejected == [
        Rejection("row 1", "5 fields in line 3 where the header has 3: put text with `,` in quotes"),
        Rejection("row 2", "the prompt of `c` is empty"),
    ]


@pytest.mark.parametrize(
    ("name", "content", "fragments"),
    [
        ("a.csv", "id,title\n1,a cat\n", ["a column prompt, caption or text", "`id`, `title`", "Rename the column"]),
        ("a.jsonl", '{"title": "a cat"}\n', ["a column prompt, caption or text", "`title`", "Rename the column"]),
        ("a.csv", "prompt\n", ["at least one prompt, but got none (0 rejected)", "Add prompts."]),
        ("a.csv", "", ["at least one prompt, but got none (0 rejected)", "Add prompts."]),
        ("a.txt", "\n\n", ["at least one prompt, but got none (2 rejected, such as row 0: ", "Add prompts."]),
        (
            "a.jsonl",
            "not json\n",
            ["none (1 rejected, such as line 1: no JSON", "Add prompts."],
        ),
        ("a.csv", b"prompt\ncaf\xe9\n", ["readable .csv text", "Save it anew as UTF-8."]),
        ("a.txt", b"caf\xe9\n", ["readable .txt text", "Save it anew as UTF-8."]),
        ("a.csv", 'prompt\n"a "cat" here"\n', ["line 2: ", "quote", "Add prompts."]),
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
    ("name", "first", "url", "kinds"),
    [
        (
            "nemo_memorized_laion_prompts.csv",
            ("1030727993", "The No Limits Business Woman Podcast", "VM"),
            "https://onlinecoach1.hipcast.com/albumart/1000_1618923228.jpg",
            {"VM": 112, "TM": 388},
        ),
        (
            "nemo_unmemorized_laion_prompts.csv",
            ("396", "Photo pour Japanese pagoda and old house in Kyoto at twilight - image libre de droit", None),
            "https://images.assetsdelivery.com/thumbnails/torsakarin/torsakarin1507/torsakarin150700324.jpg",
            {None: 500},
        ),
    ],
)
def test_the_published_prompt_files_are_read_whole(name, first, url, kinds):
    if PUBLISHED is None:
        pytest.skip(f"set FBMEM_PROMPT_FILES to a folder that holds {name} of NeMo's repository")
    prompts, rejected = read_prompts(Path(PUBLISHED) / name)
    assert prompts[0] == Prompt(*first, source=url, urls=(url,), source_index=first[0])
    assert rejected == []
    kinds_read = [prompt.kind for prompt in prompts]
    assert {kind: kinds_read.count(kind) for kind in kinds} == kinds
    assert len(kinds_read) == 500


def rejected_reasons(tmp_path, name, content):
    prompts, rejected = read(tmp_path, name, content)
    return [prompt.prompt for prompt in prompts], {item.item: item.reason for item in rejected}


def test_commas_that_no_quotes_protect_leave_their_row_out_and_nothing_is_cut(tmp_path):
    texts, reasons = rejected_reasons(tmp_path, "a.csv", "prompt\na red fox, oil painting\na barn\n")
    assert texts == ["a barn"]
    assert "2 fields in line 2 where the header has 1" in reasons["row 0"]


def test_a_quote_that_is_not_closed_does_not_swallow_the_rows_after_it(tmp_path):
    texts, reasons = rejected_reasons(tmp_path, "a.csv", 'prompt,x\n"half,1\na cat,2\na dog,"3"\na "cow",4\n')
    assert texts == ["a cat", "a dog", 'a "cow"']
    assert list(reasons) == ["line 2"]


def test_text_with_line_breaks_in_quotes_is_one_prompt(tmp_path):
    texts, reasons = rejected_reasons(tmp_path, "a.csv", 'prompt,x\n"a cat\non a mat",1\na dog,2\n')
    assert (texts, reasons) == (["a cat on a mat", "a dog"], {})


def test_a_tsv_without_quoting_keeps_its_quotes(tmp_path):
    texts, reasons = rejected_reasons(tmp_path, "a.tsv", 'caption\turl\n"Big" sign on a road\tu\n"whole"\tv\n')
    assert (texts, reasons) == (['"Big" sign on a road', "whole"], {})


def test_excel_and_spaced_headers_are_read(tmp_path):
    assert rejected_reasons(tmp_path, "a.csv", "sep=;\nprompt;kind\na, b;VM\n") == (["a, b"], {})
    assert rejected_reasons(tmp_path, "b.csv", 'id, prompt\n1, "a, b"\n') == (["a, b"], {})
    assert rejected_reasons(tmp_path, "c.csv", "prompt\tkind\na cat\tVM\n".encode("utf-16")) == (["a cat"], {})


def test_a_column_that_stands_twice_is_refused(tmp_path):
    assert "each column once, but got `prompt` twice" in error_of(tmp_path, "a.csv", "prompt,Prompt\na,b\n")


@pytest.mark.parametrize("missing", ["nan", "NaN", "None", "<NA>"])
def test_what_pandas_writes_for_a_missing_caption_is_no_prompt(tmp_path, missing):
    texts, reasons = rejected_reasons(tmp_path, "a.csv", f"prompt\na cat\n{missing}\n")
    assert texts == ["a cat"]
    assert reasons == {"row 1": f"`prompt` is `{missing}`, as missing values are written"}


def test_a_json_array_is_read_in_one_line_and_in_many(tmp_path):
    items = [{"prompt": "a cat"}, {"prompt": "a dog"}, "a cow"]
    for number, indent in enumerate((None, 1)):
        texts, reasons = rejected_reasons(tmp_path, f"{number}.json", json.dumps(items, indent=indent))
        assert texts == ["a cat", "a dog"]
        assert reasons == {"row 2": "a JSON object was expected, not str"}


def test_an_object_of_paths_is_refused_in_a_short_line(tmp_path):
    content = json.dumps({f"train/{number:05}.jpg": ["a cat"] for number in range(400)})
    text = error_of(tmp_path, "a.json", content)
    assert "`train/00000.jpg`" in text
    assert "and 394 more" in text
    assert len(text) < 400 + len(str(tmp_path))


def test_prompts_of_other_types_are_expanded_decoded_or_left_out_and_never_turned_into_text(tmp_path):
    values = [
        ["a cat", "a kitten"],
        ["a dog"],
        [],
        None,
        3,
        True,
        1.5,
        {"a": 1},
        [["a"], "a cow"],
        float("nan"),
        "\ud800",
    ]
    content = "\n".join(json.dumps({"prompt_id": f"p{at}", "prompt": value}) for at, value in enumerate(values))
    prompts, rejected = read(tmp_path, "a.jsonl", content)
    assert [(prompt.prompt_id, prompt.prompt) for prompt in prompts] == [
        ("p0-0", "a cat"), ("p0-1", "a kitten"), ("p1", "a dog"), ("p8-1", "a cow"),
    ]  # fmt: skip
    assert {item.item: item.reason for item in rejected} == {
        "row 2": "the prompt of `p2` is empty",
        "row 3": "the prompt of `p3` is empty",
        "row 4": "`prompt` holds a int (`3`), not text",
        "row 5": "`prompt` holds a bool (`True`), not text",
        "row 6": "`prompt` holds a float (`1.5`), not text",
        "row 7": "`prompt` holds an object, not text",
        "row 8 text 0": "`prompt` holds a list, not text",
        "row 9": "the prompt of `p9` is empty",
        "row 10": "`prompt` holds half a character, which no Unicode text has",
    }


def test_bytes_of_a_parquet_file_are_decoded_or_left_out(tmp_path):
    frame = pl.DataFrame({"caption": [b"a cat", b"caf\xe9"], "picture": [b"1", b"2"], "id": [1.0, 2.0]})
    frame.write_parquet(tmp_path / "a.parquet")
    prompts, rejected = read_prompts(tmp_path / "a.parquet")
    assert prompts == [Prompt("1", "a cat")]
    assert rejected == [Rejection("row 1", "`caption` holds bytes that are no UTF-8")]


def test_captions_of_one_image_get_ids_of_their_own_and_a_repeated_prompt_id_does_not(tmp_path):
    prompts, rejected = read(tmp_path, "a.csv", "index,caption\n7,a cat\n7,a kitten\n7,a cat\n8,a dog\n")
    assert [(prompt.prompt_id, prompt.prompt) for prompt in prompts] == [
        ("7", "a cat"), ("7-1", "a kitten"), ("8", "a dog"),
    ]  # fmt: skip
    assert rejected == [Rejection("row 2", "the prompt_id `7` comes again")]


def test_a_folder_of_shards_is_read_in_order(tmp_path):
    folder = tmp_path / "shards"
    folder.mkdir()
    pl.DataFrame({"caption": ["a cat"]}).write_parquet(folder / "00000.parquet")
    pl.DataFrame({"caption": ["a dog", ""]}).write_parquet(folder / "00001.parquet")
    (folder / "00000_stats.json").write_text("{}")
    (folder / "more.csv").write_text("prompt\na cow\n")
    prompts, rejected = read_prompts(folder)
    assert prompts == [Prompt("0", "a cat"), Prompt("1", "a dog")]
    assert rejected == [
        Rejection("00001.parquet row 1", "the prompt of `2` is empty"),
        Rejection("more.csv", "the folder is read as .parquet files"),
    ]
    (tmp_path / "none").mkdir()
    with pytest.raises(InputError, match=r"a folder of prompt files, but got 0 others in .*none"):
        read_prompts(tmp_path / "none")


def test_lists_of_urls_and_of_references_belong_to_their_prompt(tmp_path):
    content = (
        "prompt;urls;reference_ids;overfit_type\na cat;\"['https://a/1', 'https://a/2']\";r1;TV\na dog;;\"r1;r2\";N\n"
    )
    first, second = read(tmp_path, "a.csv", content)[0]
    assert (first.urls, first.reference_ids, first.kind) == (("https://a/1", "https://a/2"), ("r1",), "TV")
    assert (second.urls, second.reference_ids, second.reference_id) == ((), ("r1", "r2"), "r1")
