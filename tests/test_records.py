import pytest

from src.fitted_on import refuse_leakage
from src.records import FittedItem, Item, order_classes, read_items
from src.split_files import FoldSplit, check_split, read_split


def write(path, text):
    path.write_text(text)
    return path


def test_ids_stay_strings(tmp_path):
    path = write(tmp_path / "d.csv", "case_id,slide_id,label,extra\n001,0007,1,x\n002,0008,0,y\n")
    assert read_items(path) == [Item("0007", "001", "1"), Item("0008", "002", "0")]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("case_id,label\na,b\n", r"one of the columns slide_id, image_id, item_id in .*, got \['case_id', 'label'\]"),
        ("slide_id,item_id,label\na,b,c\n", r"one of the columns .* got \['slide_id', 'item_id'\]"),
        ("case_id,slide_id\na,b\n", r"label columns \['label'\].*add \['label'\], .*dataset.target=null"),
        ("case_id,slide_id,label\na,s1,x\nb,s1,x\n", r"every id once .* 's1' more than once"),
        ("case_id,slide_id,label\na,s1,tumour\n", r"labels among \['normal', 'tumor'\].* \['tumour'\]"),
    ],
)
def test_bad_csv_is_named(tmp_path, text, message):
    with pytest.raises(ValueError, match=message):
        read_items(write(tmp_path / "d.csv", text), ["normal", "tumor"])


def test_images_may_have_many_labels_some_of_them_empty_or_uncertain(tmp_path):
    path = write(tmp_path / "d.csv", "case_id,image_id,edema,pneumonia\np1,i1,1,0\np1,i2,,-1\np2,i3,-1,1\n")
    items = read_items(path, target="edema", labels=["pneumonia"], uncertain="unlabelled")
    assert items == [
        Item("i1", "p1", "1", {"pneumonia": "0"}),
        Item("i2", "p1", None, {"pneumonia": None}),
        Item("i3", "p2", None, {"pneumonia": "1"}),
    ]
    assert [item.label for item in read_items(path, target="edema", uncertain="1")] == ["1", None, "1"]
    assert [item.label for item in read_items(path, target="edema")] == ["1", None, "-1"]


def test_without_cases_each_item_is_one_and_that_is_said(tmp_path, caplog):
    path = write(tmp_path / "d.csv", "item_id\ni1\ni2\n")
    assert read_items(path, target=None) == [Item("i1", "i1", None), Item("i2", "i2", None)]
    assert "no column case_id: every item counts as a case of its own" in caplog.text


NO_BREAK = "\u00a0"


@pytest.mark.parametrize("blank", [" ", "\t", NO_BREAK, "\u2003", "\u200b"])
@pytest.mark.parametrize(
    ("row", "column"), [("p{},s,neg", "case_id"), ("p,{}s,neg", "slide_id"), ("p,s,neg{}", "label")]
)
def test_blanks_around_ids_and_labels_are_listed(tmp_path, row, column, blank):
    path = write(tmp_path / "d.csv", "case_id,slide_id,label\np,s0,neg\n" + row.format(blank) + "\n")
    with pytest.raises(ValueError, match=rf"{column} without blanks .*d\.csv, got '.+': correct") as caught:
        read_items(path)
    assert len(str(caught.value).splitlines()) == 1


def test_slides_without_a_case_are_no_case_together(tmp_path):
    path = write(tmp_path / "d.csv", "case_id,slide_id,label\n,s1,a\n,s2,b\n")
    with pytest.raises(ValueError, match=r"Expected case_id .* none empty, in .*d\.csv, got ''"):
        read_items(path)


def test_byte_order_mark_is_no_part_of_the_header(tmp_path):
    (tmp_path / "d.csv").write_text("case_id,slide_id,label\na,s1,x\n", encoding="utf-8-sig")
    assert read_items(tmp_path / "d.csv") == [Item("s1", "a", "x")]
    (tmp_path / "splits_0.csv").write_text("train,val,test\na,b,c\n", encoding="utf-8-sig")
    assert read_split(tmp_path, 0) == FoldSplit(0, ("a",), ("b",), ("c",))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("case_id,slide_id,label\na,s1,x\n".encode("utf-16"), r"UTF-8 in .*\.csv, got UTF-16: save it again"),
        ("case_id,slide_id,label\na,s1,x\n".encode("utf-16-le"), r"UTF-8 in .*\.csv, got bytes of zero"),
        ("train,val,test\nm\u00fcller,b,c\n".encode("latin-1"), r"UTF-8 in .*\.csv, got other bytes at byte 16"),
        (b"", r"csv with a header at .*\.csv, got an empty file"),
        (b"\n\n", r"csv with a header at .*\.csv, got an empty file"),
        (b"train,val,test\na,b,c\nd,e,f,g\n", r"3 values in every line of .*\.csv.* got 4 in line 3"),
        (b"case_id,slide_id,label\na,s1\n", r"3 values in every line of .*\.csv.* got 2 in line 2"),
        (b"train,val,train\na,b,c\n", r"each column once in .*\.csv, got \['train'\]"),
    ],
)
def test_file_that_is_no_good_csv_is_named_in_one_sentence(tmp_path, content, message):
    path = tmp_path / "splits_0.csv"
    path.write_bytes(content)
    for read in (lambda: read_items(path), lambda: read_split(tmp_path, 0)):
        with pytest.raises(ValueError, match=message) as caught:
            read()
        assert len(str(caught.value).splitlines()) == 1


def test_labels_that_yaml_takes_for_numbers(tmp_path):
    path = write(tmp_path / "d.csv", "case_id,slide_id,label\na,s1,0\nb,s2,1\n")
    assert [slide.label for slide in read_items(path, [0, 1])] == ["0", "1"]  # pyright: ignore
    assert order_classes(["0", "1"], 0) == ("1", "0")  # pyright: ignore
    for ambiguous in (True, 1.0, None):
        with pytest.raises(ValueError, match=r"text in dataset\.class_names, got .*: put the label in quotes"):
            read_items(path, ["0", ambiguous])  # pyright: ignore
    with pytest.raises(ValueError, match=r"one of \['00', '01'\], got '1': .* leading zeros in quotes"):
        order_classes(["00", "01"], 1)  # pyright: ignore


def test_missing_csv_says_which_key_gives_it(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"none\.csv.*dataset\.metadata_csv"):
        read_items(tmp_path / "none.csv")


def test_positive_class_of_two_is_last():
    assert order_classes(["a", "b", "a"], "a") == ("b", "a")
    assert order_classes(["c", "a", "b"], None) == ("a", "b", "c")
    assert order_classes(["c", "a", "b"], None, ["b", "d", "a", "c"]) == ("b", "a", "c")
    assert order_classes(["a", "b"], "a", ["a", "b"]) == ("b", "a")
    with pytest.raises(ValueError, match=r"got none of \['a', 'b'\]"):
        order_classes(["a", "b"], None)
    with pytest.raises(ValueError, match="got 'z'"):
        order_classes(["a", "b"], "z")
    with pytest.raises(ValueError, match="at least two classes"):
        order_classes(["a"], None)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("splits_3.csv", "train,val,test\n01,03,04\n02,,\n"),
        ("splits_3.csv", ",train,val,test\n0,01,03,04\n1,02,,\n"),
        (
            "splits_3_bool.csv",
            "item_id,train,val,test\n01,True,False,False\n02,True,False,False\n03,False,True,False\n04,False,False,True\n",
        ),
    ],
)
def test_split_dialects(tmp_path, name, text):
    write(tmp_path / name, text)
    assert read_split(tmp_path, 3) == FoldSplit(3, ("01", "02"), ("03",), ("04",))


def test_split_errors(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"splits_0\.csv .*task=splits"):
        read_split(tmp_path, 0)
    write(tmp_path / "splits_0.csv", "training,test\na,b\n")
    with pytest.raises(ValueError, match=r"missing \['train'\]"):
        read_split(tmp_path, 0)
    write(tmp_path / "splits_1.csv", "train,val,test\na,b,a\n")
    with pytest.raises(ValueError, match="'a' in several"):
        read_split(tmp_path, 1)
    with pytest.raises(ValueError, match="got 'dev'"):
        FoldSplit(0, (), (), ()).item_ids("train+dev")


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("splits_0.csv", "train,val,test\na ,,a\n"),
        ("splits_0_bool.csv", "item_id,train,val,test\na,False,False,True\na ,True,False,False\n"),
    ],
)
def test_blanks_around_slide_ids_of_a_split_are_listed(tmp_path, name, text):
    write(tmp_path / name, text)
    with pytest.raises(ValueError, match=rf"slide ids without blanks .*{name}, got 'a '"):
        read_split(tmp_path, 0)


def test_flag_that_is_neither_true_nor_false_drops_no_slide(tmp_path):
    write(tmp_path / "splits_0_bool.csv", "item_id,train,val,test\na,1,False,False\nb,False,False,True\n")
    with pytest.raises(ValueError, match=r"True or False in column train of .*, got '1'"):
        read_split(tmp_path, 0)


def test_split_must_agree_with_the_slides():
    slides = [Item("s1", "c1", "a"), Item("s2", "c1", "a"), Item("s3", "c2", "b")]
    check_split(FoldSplit(0, ("s1", "s2"), (), ("s3",)), slides)
    with pytest.raises(ValueError, match=r"'s9' that it does not list"):
        check_split(FoldSplit(0, ("s1",), (), ("s9",)), slides)
    with pytest.raises(ValueError, match=r"case 'c1' in train and test"):
        check_split(FoldSplit(0, ("s1",), (), ("s2",)), slides)
    with pytest.raises(ValueError, match=r"part 'test' of fold 0, got none"):
        check_split(FoldSplit(0, ("s1",), (), ()), slides)


def test_leakage_is_refused_by_slide_case_and_content():
    fitted = [FittedItem("s1", "c1", "d1", 100)]
    assert refuse_leakage(fitted, [FittedItem("s2", "c2", "d2", 100)], "the SAE") == []
    for held_out, message in [
        (FittedItem("s1", "c9", "d9", 100), "slide 's1'"),
        (FittedItem("s9", "c1", "d9", 100), "case 'c1'"),
        (FittedItem("s9", "c9", "d1", 100), "equal to those of 's1'"),
    ]:
        with pytest.raises(ValueError, match=message):
            refuse_leakage(fitted, [held_out], "the SAE")
    assert refuse_leakage(fitted, [FittedItem("s9", "c9", "d1", 3)], "the SAE") == ["s9 = s1"]


@pytest.mark.realdata
def test_published_tables_are_read(data_dir):
    tables = data_dir / "tables" / "sae1n"
    slides = read_items(tables / "camelyon16_metadata.csv", ["normal", "tumor"])
    split = read_split(tables, 0)
    check_split(split, slides)
    assert [len(split.item_ids(part)) for part in ("train", "val", "test")] == [216, 54, 129]
