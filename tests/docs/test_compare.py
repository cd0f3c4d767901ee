"""The comparison of shown and printed lines finds what is wrong, and nothing else."""

from __future__ import annotations

import textwrap
from pathlib import Path

import pytest

from tessella.cli.program import cli

from .blocks import read_page, reason_not_to_run, shown_commands, unknown_options
from .compare import difference, words
from .reader import Reader

TABLE = ["status   rows", "─────────────", "ok         76", "not_found   1"]


@pytest.mark.parametrize(
    ("shown", "printed"),
    [
        ("   99.2 %  cat", "   98.7 %  cat"),
        ("1,024 rows, 0.3 s", "72 rows, 12.8 s"),
        ("saved to /home/me/.cache/tessella", "saved to /tmp/pytest-0/cache"),
        ("fingerprint 022fb79d0d4872c9", "fingerprint a97a70680fb9fda9"),
        ("tuned on 2026-11-29", "tuned on 2027-01-02"),
        ("device cpu; hardware AMD EPYC, 2 cores, AVX512-BF16.", "device cpu; hardware Intel Xeon, 4 cores, AVX2."),
        ("a   b ─── c", "a b c"),
        ("[0.7 , 1.  ]", "[0.71, 0.99]"),
    ],
)
def test_numbers_paths_hashes_dates_and_spaces_may_differ(shown: str, printed: str) -> None:
    assert difference([shown], printed) is None


@pytest.mark.parametrize(
    ("shown", "printed"),
    [
        ("   99.2 %  cat", "   99.2 %  dog"),
        ("clothing/hat/0613.jpg", "clothing/shoes/0613.jpg"),
        ("wrote 2 files", "wrote 2 files to folder"),
        ("convmixer_256_8_ks3_p4.cifar10", "mixer_ti_p4_32.cifar10"),
        ("deadbeef", "decade"),
    ],
)
def test_words_must_be_the_same(shown: str, printed: str) -> None:
    assert difference([shown], printed) is not None


def test_the_default_model_may_be_another_one() -> None:
    shown, printed = "serving convmixer_256_8_ks3_p4.cifar10", "serving mixer_ti_p4_32.cifar10"
    assert difference([shown], printed, any_model=True) is None
    assert words(shown) != words(printed)


def test_all_of_standard_output_is_shown_in_its_order() -> None:
    printed = "\n".join(TABLE)
    assert difference(TABLE, printed) is None
    assert difference(TABLE[:3], printed) == "printed, but not shown: not_found   1"
    assert difference([*TABLE[:2], TABLE[3], TABLE[2]], printed) is not None
    assert difference([*TABLE, "corrupt_image 3"], printed) is not None


def test_lines_can_be_left_out_visibly() -> None:
    printed = "\n".join(TABLE)
    assert difference([*TABLE[:1], "..."], printed) is None
    assert difference(["...", TABLE[3]], printed) is None
    assert difference([TABLE[0], "...", "corrupt_image 3"], printed) is not None


def test_remarks_can_be_left_out_but_not_invented() -> None:
    assert difference(["ok"], "ok", "a warning") is None
    assert difference(["a warning", "ok"], "ok", "another\na warning") is None
    assert difference(["a warning", "ok"], "ok", "another") is not None


def test_json_is_compared_by_its_structure() -> None:
    printed = '{"model":"m","results":[{"label":"cat","p":0.99,"unknown":false}]}'
    assert difference(['{"model":"m","results":', '[{"label":"cat","p":0.5,"unknown":false}]}'], printed) is None
    for wrong in ('"dog","p":0.5,"unknown":false', '"cat","p":"0.5","unknown":false', '"cat","p":1,"unknown":true'):
        assert difference([f'{{"model":"m","results":[{{"label":{wrong}}}]}}'], printed) is not None
    assert difference(['{"model":"m","results":[]}'], printed) is not None
    assert difference(['{"model":"m"}'], printed) is not None


def test_a_command_may_take_several_lines() -> None:
    source = "$ tessella train a \\\n    --out b\nready\n$ ls\n"
    assert shown_commands(source) == [("tessella train a \\\n    --out b", ["ready"]), ("ls", [])]
    with pytest.raises(ValueError, match="does not begin with a command"):
        shown_commands("tessella train a\n")


def test_options_that_do_not_exist_are_found() -> None:
    assert unknown_options("tessella run photos --out pets -q  # --comment", cli) == []
    assert unknown_options("tessella run photos --output=pets", cli) == ["--output"]
    assert unknown_options("tessella walk photos", cli) == ["walk"]


def problems_of(page: str, folder: Path) -> list[str | None]:
    path = folder / "page.md"
    path.write_text(textwrap.dedent(page))
    reader = Reader(folder)
    found = [reader.evaluate(example) for example in read_page(path, reader.evaluate)]
    reader.close()
    return found


def test_blocks_share_a_folder_and_a_namespace(tmp_path: Path) -> None:
    page = """
        ```console
        $ echo 17 apples > note.txt
        $ cat note.txt missing.txt
        error: no such file
        ```

        ```python
        from pathlib import Path

        text = Path("note.txt").read_text()
        ```

        ```python
        print(text.split()[1])
        ```

        ```text
        apples
        ```

        ```python
        >>> len(text)
        10
        >>> text.split()[1]
        'pears'
        ```
        """
    first, *correct, last = problems_of(page, tmp_path)
    assert first is not None
    assert "not printed (at this place): error: no such file" in first
    assert correct == [None, None, None]
    assert last is not None
    assert "'apples'" in last


def test_an_exit_status_that_is_not_shown_is_a_problem(tmp_path: Path) -> None:
    (problem,) = problems_of("```sh\nfalse\n```\n", tmp_path)
    assert problem is not None
    assert "the exit status is 1" in problem


def test_marked_blocks_are_not_run(tmp_path: Path) -> None:
    page = "<!-- not run: needs the network -->\n```sh\nfalse\n```\n\nText <!-- not run: no -->\n\n```sh\ntrue\n```\n"
    assert problems_of(page, tmp_path) == [None, None]
    first, second = read_page(tmp_path / "page.md", lambda example: None)
    assert reason_not_to_run(first.document, first.region) == "needs the network"
    assert reason_not_to_run(second.document, second.region) is None


def test_a_block_of_an_unknown_kind_is_a_problem(tmp_path: Path) -> None:
    (problem,) = problems_of("```text\nwho printed this?\n```\n", tmp_path)
    assert problem is not None
    assert "mark it with" in problem
