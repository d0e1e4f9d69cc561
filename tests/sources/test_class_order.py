"""Labels follow the requested order of class folders, and surprising orders are noted."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from repa_pipe.errors import SourceError
from repa_pipe.sources import SourceOptions, open_source
from repa_pipe.sources.class_order import natural_key


@pytest.fixture
def numbered(tmp_path, encode):
    for number in (0, 1, 2, 10, 11):
        (tmp_path / "images" / str(number)).mkdir(parents=True)
        (tmp_path / "images" / str(number) / "a.png").write_bytes(encode(number))
    return tmp_path / "images"


def classes(folder, **options):
    source = open_source(str(folder), None, SourceOptions(**options))
    keys = source.index()["key"].to_pylist()
    assert [key.partition("/")[0] for key in keys] == [
        source.class_names[label] for label in source.index()["label"].to_pylist()
    ]
    return source.class_names


def class_list(folder, *names):
    file = folder.parent / "classes.txt"
    file.write_text("\n".join(names) + "\n")
    return str(file)


def test_folders_with_numbers_are_sorted_as_text_and_this_is_noted(numbered):
    assert classes(numbered) == ("0", "1", "10", "11", "2")
    (note,) = open_source(str(numbered)).notes
    assert "folder 10 has label 2; --class-order natural sorts them by value" in note


def test_natural_order_sorts_numbers_by_value_without_a_note(numbered):
    assert classes(numbered, class_order="natural") == ("0", "1", "2", "10", "11")
    assert open_source(str(numbered), None, SourceOptions(class_order="natural")).notes == ()


def test_a_class_list_defines_the_labels(numbered):
    assert classes(numbered, class_order=class_list(numbered, "11", "0", "", "2 ", "1", "10")) == (
        *("11", "0", "2", "1", "10"),
    )


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["0", "1", "2", "10"], r"does not list all class folders with images in .* \(1: 11\): add them, one per line"),
        (["0", "1", "2", "10", "11", "12"], r"lists class folders that .* does not have \(1: 12\): correct the list"),
        (["0", "1", "2", "10", "11", "0"], r"lists 0 more than once"),
        ([], "is empty: expected one class folder per line"),
    ],
)
def test_a_class_list_that_does_not_match_the_folders_is_refused(numbered, names, message):
    with pytest.raises(SourceError, match=message):
        classes(numbered, class_order=class_list(numbered, *names))


def test_a_class_list_that_cannot_be_read_is_refused(numbered):
    with pytest.raises(SourceError, match=r"--class-order random cannot be read .*expected name, natural, or a text"):
        classes(numbered, class_order="random")
    (numbered.parent / "latin.txt").write_bytes(b"\xff\xfe\xfa")
    with pytest.raises(SourceError, match=r"latin.txt cannot be read \(not UTF-8 text\)"):
        classes(numbered, class_order=str(numbered.parent / "latin.txt"))


def test_an_empty_class_folder_can_be_left_out_of_a_class_list(numbered):
    (numbered / "empty").mkdir()
    with pytest.raises(SourceError, match="--class-order FILE with a list of class folders without them"):
        classes(numbered)
    assert classes(numbered, class_order=class_list(numbered, "0", "1", "2", "10", "11")) == ("0", "1", "2", "10", "11")


def test_an_order_without_class_folders_is_refused(numbered, tmp_path):
    (numbered / "dataset.json").write_text(str([[f"{n}/a.png", 0] for n in (0, 1, 2, 10, 11)]).replace("'", '"'))
    labels = (numbered / "dataset.json").read_text()
    (numbered / "dataset.json").write_text(f'{{"labels": {labels}}}')
    with pytest.raises(SourceError, match=r"--class-order natural has no effect on .*labels are in dataset.json: omit"):
        classes(numbered, class_order="natural")
    with pytest.raises(SourceError, match="--class-order natural has no effect with --unlabeled"):
        SourceOptions(class_order="natural", unlabeled=True)


def test_class_folders_that_differ_only_by_case_are_noted(tmp_path, encode):
    for name in ("Cat", "cat", "dog"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "a.png").write_bytes(encode())
    assert classes(tmp_path) == ("Cat", "cat", "dog")
    (note,) = open_source(str(tmp_path)).notes
    assert "differ only by case, and are different classes: Cat, cat" in note


def test_zero_padded_numbers_are_not_noted(tmp_path, encode):
    for name in ("000", "001", "010"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "a.png").write_bytes(encode())
    assert open_source(str(tmp_path)).notes == ()


@given(st.lists(st.integers(0, 10**6), unique=True), st.text("ab-", max_size=2))
def test_natural_order_of_names_with_one_number_is_that_of_the_numbers(numbers, prefix):
    assert sorted((f"{prefix}{n}" for n in numbers), key=natural_key) == [f"{prefix}{n}" for n in sorted(numbers)]
