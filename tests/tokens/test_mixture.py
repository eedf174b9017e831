"""Exports of rows in one vocabulary: text, and the tokens of several models."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
from conftest import files_in

import vqtok
from tokens.test_export import equal, image, read_megatron, sound
from vqtok.errors import MediaError, OutputError, UsageError
from vqtok.jobs.mixture import find_rows, write_extended_tokenizer
from vqtok.jobs.mixture_files import MixtureOptions, origin
from vqtok.tokens.export.layout import to_ids
from vqtok.tokens.export.mixture import choose_mixture
from vqtok.tokens.export.row_templates import RowTemplate, Splits, choose_template
from vqtok.tokens.export.sequences import Packer, Sequence
from vqtok.tokens.vqt.file import dump

SPEECH = b"speechmo"
"""The identity of a second model."""


def pair(number):
    """Return an image and audio that belong together, with a caption but for each third."""
    metadata = {"caption": f"digit {number}", "n": number} if number % 3 else {}
    spoken = replace(sound(4 + number), model=SPEECH, codebook_sizes=(7, 9))
    return image(3, 2, seed=number, metadata=metadata), spoken


@pytest.fixture
def pairs(tmp_path):
    """Return a folder with the tokens of six images and of six recordings, of two models."""
    for number in range(6):
        for tokens, name in zip(pair(number), ("images/{}.vqt", "speech/{}.vqt"), strict=True):
            path = tmp_path / "tokens" / name.format(number)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(dump(tokens))
    return [tmp_path / "tokens/images", tmp_path / "tokens/speech"]


def rows_of(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_one_range_for_each_model_in_the_order_given(pairs, tmp_path):
    facts = vqtok.export(pairs, tmp_path / "x.jsonl", "jsonl", offset=100)
    assert [(one["start"], one["codebook_sizes"]) for one in facts["models"]] == [(100, [7, 9]), (116, [7, 9])]
    assert facts["special_tokens"] == {"image": 132, "/image": 133, "audio": 134, "/audio": 135}
    assert facts["vocabulary_size"] == 136
    assert files_in(tmp_path)[0] == ".x.jsonl.json"
    first = rows_of(tmp_path / "x.jsonl")[1]
    picture, spoken = pair(1)
    mixture = choose_mixture([picture, spoken], offset=100)
    image_ids = to_ids(picture.codes, "flat", mixture.ranges[0].vocabulary())
    speech_ids = to_ids(spoken.codes, "flat", mixture.ranges[1].vocabulary())
    assert first["input_ids"] == [132, *image_ids, 133, 134, *speech_ids, 135]
    assert (first["key"], first["caption"], first["n"]) == ("1", "digit 1", 1)
    turned = vqtok.export(pairs[::-1], tmp_path / "y.jsonl", "jsonl")
    assert [one["model"] for one in turned["models"]] == [SPEECH.hex(), picture.model.hex()]


@pytest.mark.parametrize("to", ["jsonl", "parquet"])
@pytest.mark.parametrize("layout", ["flat", "coarse-first"])
def test_read_back(pairs, tmp_path, run, to, layout):
    if to == "parquet":
        pytest.importorskip("pyarrow")
    path = tmp_path / f"x.{to}"
    options = {"layout": layout, "special_tokens": ["image", "audio", "text", "row", "size"], "tokenizer": "bytes"}
    vqtok.export(pairs, path, to, row=["{caption}{image}{audio}"], end_token="auto", **options)
    found = vqtok.models.token_reader.open_items(path)
    assert list(found) == [f"{n}{suffix}" for n in (1, 2, 4, 5) for suffix in (".png", ".wav")]
    for number in (1, 5):
        picture, spoken = pair(number)
        assert equal(replace(found[f"{number}.png"], metadata={}), replace(picture, metadata={}))
        assert found[f"{number}.png"].metadata == {"caption": f"digit {number}", "n": number}
        assert np.array_equal(found[f"{number}.wav"].codes, spoken.codes)
    facts = json.loads(run("inspect", path, "--json").stdout)
    assert (facts["kind"], facts["num_items"]) == ("export", 4)
    assert "digit" not in run("inspect", path).stderr
    if to == "parquet":  # Its footer is enough.
        path.with_name(f".{path.name}.json").unlink()
        assert len(vqtok.models.token_reader.open_items(path)) == 8


def test_templates_with_weights_and_rows_without_a_column(pairs, tmp_path):
    facts = vqtok.export(
        pairs, tmp_path / "x.jsonl", "jsonl", tokenizer="bytes", row=["{caption}{image}=3", "{image} is {caption}"]
    )
    assert facts["skipped"] == {"without caption, image": 2}
    rows = rows_of(tmp_path / "x.jsonl")
    assert [row["key"] for row in rows] == ["1", "2", "4", "5"]
    begin = facts["special_tokens"]["image"]
    for row in rows:
        text = bytes(number for number in row["input_ids"] if number < 256).decode()
        caption_first = row["input_ids"][0] != begin
        assert text == row["caption"] if caption_first else f" is {row['caption']}"
    templates = [RowTemplate.parse("{a}=3"), RowTemplate.parse("{b}")]
    chosen = [choose_template(templates, {"a", "b"}, str(key)).text for key in range(400)]
    assert 0.65 < chosen.count("{a}") / 400 < 0.85
    assert choose_template(templates, {"b"}, "x").text == "{b}"
    assert choose_template(templates, {"c"}, "x") is None


def test_splits_stay_when_rows_are_added():
    splits = Splits.parse("train=0.9,validation=0.1")
    names = [splits.of(f"{number}") for number in range(1000)]
    assert 60 < names.count("validation") < 140
    for wrong in ("train=0.9", "train", "train=1.5,a=-0.5", "=1", "a b=1"):
        with pytest.raises(UsageError, match="`split`"):
            Splits.parse(wrong)


def test_parts_of_a_file_stay_in_one_split(tmp_path):
    folder = tmp_path / "t"
    folder.mkdir()
    for number in range(20):
        for label, facts in (("", None), ("-flipped", {"flipped": True}), ("-00003", {"segment": 3})):
            metadata = {"transforms": facts} if facts else {}
            (folder / f"{number}{label}.vqt").write_bytes(dump(image(3, 2, metadata=metadata)))
    vqtok.export([folder], tmp_path / "out", "jsonl", split="train=0.5,test=0.5")
    for name in ("train", "test"):
        keys = [row["key"] for row in rows_of(tmp_path / f"out/{name}.jsonl")]
        assert keys
        assert {key.partition("-")[0] + label for key in keys for label in ("", "-flipped", "-00003")} == {*keys}
    assert origin(Sequence("1-flipped", np.arange(2), columns={"transforms": '{"flipped": true}'})) == "1"
    assert origin(Sequence("1-flipped", np.arange(2), columns={"transforms": "by hand"})) == "1-flipped"


def test_splits_parts_and_shuffling(pairs, tmp_path):
    out = tmp_path / "out"
    facts = vqtok.export(pairs, out, "jsonl", split="train=0.5,validation=0.5", rows_per_file=2, shuffle=1)
    names = files_in(out)
    assert names[0] == ".vqtok.json"
    assert {name.partition("-")[0] for name in names[1:]} == {"train", "validation"}
    assert sum(found["num_items"] for found in facts["splits"].values()) == facts["num_items"] == 6
    keys = [row["key"] for name in names[1:] for row in rows_of(out / name)]
    assert sorted(keys) == list("012345")
    assert all(len(rows_of(out / name)) <= 2 for name in names[1:])
    with pytest.raises(OutputError, match="output exists"):
        vqtok.export(pairs, out, "jsonl", rows_per_file=2)
    vqtok.export(pairs, out, "jsonl", split="train=0.5,validation=0.5", rows_per_file=3, overwrite=True)
    assert (
        len([row for path in out.glob("train*.jsonl") for row in rows_of(path)])
        == facts["splits"]["train"]["num_items"]
    )


def test_as_nanogpt_reads_it(pairs, tmp_path):
    """`train.bin` and `val.bin` are read by `np.memmap` as uint16, as in nanoGPT's train.py."""
    out = tmp_path / "out"
    facts = vqtok.export(pairs, out, "bin", split="train=0.5,validation=0.5", end_token="auto")
    assert files_in(out) == [".vqtok.json", "train.bin", "val.bin"]
    data = np.memmap(out / "train.bin", dtype=np.uint16, mode="r")
    assert facts["dtype"] == "uint16"
    assert len(data) == facts["splits"]["train"]["num_ids"]
    assert data.max() < facts["vocabulary_size"] == json.loads((out / ".vqtok.json").read_text())["vocabulary_size"]
    assert (data == facts["special_tokens"]["end"]).sum() == facts["splits"]["train"]["num_items"]


def test_as_megatron_reads_it(pairs, tmp_path):
    facts = vqtok.export(pairs, tmp_path / "train", "megatron", end_token="auto")
    found = read_megatron(tmp_path / "train")
    assert len(found) == 6
    assert all(ids[-1] == facts["special_tokens"]["end"] for ids in found)
    indexed = pytest.importorskip("megatron.core.datasets.indexed_dataset")
    dataset = indexed.IndexedDataset(str(tmp_path / "train"))
    assert all(np.array_equal(dataset[number], ids) for number, ids in enumerate(found))


def test_packed_sequences_keep_the_boundaries_of_documents(pairs, tmp_path):
    whole = vqtok.export(pairs, tmp_path / "x.jsonl", "jsonl")
    facts = vqtok.export(pairs, tmp_path / "packed.jsonl", "jsonl", pack=32)
    rows = rows_of(tmp_path / "packed.jsonl")
    documents = [number for row in rows_of(tmp_path / "x.jsonl") for number in row["input_ids"]]
    assert [number for row in rows for number in row["input_ids"]] == documents[: 32 * len(rows)]
    assert facts["num_sequences"] == len(rows) == whole["num_ids"] // 32
    assert facts["ids_left_over"] == whole["num_ids"] % 32
    begin = facts["special_tokens"]["image"]
    for row in rows:
        starts = [place for place, number in enumerate(row["input_ids"]) if number == begin]
        assert row["cu_seqlens"] == sorted({0, *starts, 32})
        assert [row["position_ids"][start] for start in starts] == [0] * len(starts)
    with pytest.raises(MediaError, match="do not fill a sequence"):
        vqtok.export(pairs, tmp_path / "none.jsonl", "jsonl", pack=10_000)
    with pytest.raises(MediaError, match="--ids"):
        vqtok.models.token_reader.open_items(tmp_path / "packed.jsonl")
    assert [s.ids.tolist() for s in Packer(2).add(np.arange(5))] == [[0, 1], [2, 3]]


def test_a_split_that_fills_no_sequence_is_told(pairs, tmp_path, caplog):
    splits = vqtok.export(pairs, f"{tmp_path}/all/", "jsonl", split="train=0.5,validation=0.5")["splits"]
    fewest, most = sorted(splits, key=lambda name: splits[name]["num_ids"])
    assert splits[fewest]["num_ids"] < splits[most]["num_ids"]
    length = splits[most]["num_ids"]
    facts = vqtok.export(pairs, f"{tmp_path}/packed/", "jsonl", split="train=0.5,validation=0.5", pack=length)
    assert f"of the split {fewest} do not fill a sequence of {length}, so it gets no file" in caplog.text
    assert not (tmp_path / "packed" / f"{fewest}.jsonl").exists()
    assert facts["splits"][fewest]["ids_left_over"] == splits[fewest]["num_ids"]


def test_data_sets_of_hugging_face_open_every_export(pairs, tmp_path):
    datasets = pytest.importorskip("datasets")
    datasets.disable_progress_bars()
    for to in ("parquet", "jsonl"):
        out = tmp_path / to
        facts = vqtok.export(pairs, f"{out}/", to, split="train=0.5,validation=0.5", tokenizer="bytes")
        found = datasets.load_dataset(str(out), cache_dir=str(tmp_path / "cache"))
        assert {name: len(found[name]) for name in found} == {
            name: split["num_items"] for name, split in facts["splits"].items()
        }
        assert found["train"].column_names[:2] == ["key", "input_ids"]
        streamed = datasets.load_dataset(str(out), split="train", streaming=True)
        assert [row["key"] for row in streamed] == found["train"]["key"][:]
        alone = tmp_path / f"one-{to}"
        alone.mkdir()
        vqtok.export([pairs[0]], alone / f"x.{to}", to)  # The export of one model.
        assert len(datasets.load_dataset(str(alone), cache_dir=str(tmp_path / "cache"))["train"]) == 6


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_codebooks": 1}, "`num_codebooks`: there are tokens of several models"),
        ({"num_codebooks": "image=0"}, "`num_codebooks` image=0"),
        ({"tokenizer": "bytes", "offset": 200}, "lies inside the text vocabulary of 256 ids"),
        ({"row": ["{caption}{image}"]}, "text needs ids; give a `tokenizer`"),
        ({"row": ["{image"]}, "`row`"),
        ({"row": ["words"]}, "needs fields"),
        ({"row": ["{image}=0"]}, "its weight must be above 0"),
        ({"layout": "delay"}, "flat or coarse-first"),
        ({"special_tokens": ["nonsense"]}, "give some of image, audio"),
        ({"begin_token": 3, "offset": 2}, "begin token 3: is the id of a code"),
        ({"begin_token": "x"}, "must be an id, auto or none"),
        ({"pack": 1}, "at least 2 ids"),
        ({"shared_vocabulary": True}, "is for the tokens of one model"),
        ({"tokenizer": "/nowhere"}, "`tokenizer` /nowhere: cannot be opened"),
    ],
)
def test_what_does_not_go_together_stops_before_any_work(pairs, tmp_path, options, message):
    if options.get("tokenizer", "bytes") != "bytes":
        pytest.importorskip("transformers")
    with pytest.raises(UsageError, match=message.replace("(", r"\(")):
        vqtok.export(pairs, tmp_path / "out/x.jsonl", "jsonl", **options)
    assert not (tmp_path / "out").exists()


def test_codebooks_by_modality(pairs, tmp_path):
    facts = vqtok.export(pairs, tmp_path / "x.jsonl", "jsonl", num_codebooks="image=1,audio=2")
    assert [one["codebook_sizes"] for one in facts["models"]] == [[7], [7, 9]]


def test_models_that_are_not_bundled(run, make_model, tmp_path, photo, sound):
    """Files coded with their statistics need both models, whose names are repeated."""
    models = [make_model("image", seed=3), make_model("audio", seed=3)]
    for path, model in zip((photo, sound), models, strict=True):
        assert (
            run("encode", path, "-m", model, "-o", tmp_path / f"t/{path.stem}.vqt", "--coder", "static").exit_code == 0
        )
    given = [part for model in models for part in ("-m", model)]
    assert run("export", tmp_path / "t", "--to", "jsonl", "-o", tmp_path / "x.jsonl", *given).exit_code == 0
    assert len(rows_of(tmp_path / "x.jsonl")) == 2
    assert run("export", tmp_path / "t", "--to", "jsonl", "-o", tmp_path / "y.jsonl", *given[:2]).exit_code == 1


def test_a_damaged_file_costs_its_row(run, pairs, tmp_path):
    (pairs[0] / "2.vqt").write_bytes((pairs[0] / "2.vqt").read_bytes()[:-3])
    result = run("export", *pairs, "--to", "jsonl", "-o", tmp_path / "x.jsonl")
    assert result.exit_code == 1
    assert "2.vqt" in result.stderr
    assert [row["key"] for row in rows_of(tmp_path / "x.jsonl")] == list("01345")


@pytest.fixture
def text_tokenizer(tmp_path):
    """Return a folder with a small tokenizer of transformers."""
    transformers = pytest.importorskip("transformers")
    tokenizers = pytest.importorskip("tokenizers")
    words = {word: number for number, word in enumerate(["<unk>", "</s>", "digit", *"0123456789"])}
    made = tokenizers.Tokenizer(tokenizers.models.WordLevel(words, unk_token="<unk>"))
    made.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    folder = tmp_path / "tokenizer"
    transformers.PreTrainedTokenizerFast(tokenizer_object=made, unk_token="<unk>", eos_token="</s>").save_pretrained(
        folder
    )
    return folder


def test_the_extended_tokenizer_gives_the_ids_of_the_export(run, pairs, tmp_path, text_tokenizer):
    transformers = pytest.importorskip("transformers")
    options = ["--special-tokens", "image,audio,row,text", "--end-token", "auto"]
    rows = ["--row", "{caption}{image}{audio}", "--tokenizer", text_tokenizer]
    assert run("export", *pairs, "--to", "jsonl", "-o", tmp_path / "x.jsonl", *options, *rows).exit_code == 0
    new = tmp_path / "new"
    result = run("export", *pairs, "--extend-tokenizer", text_tokenizer, "-o", new, *options, "--json")
    assert result.exit_code == 0, result.output
    facts = json.loads(result.stdout)
    tokenizer = transformers.AutoTokenizer.from_pretrained(new)
    assert len(tokenizer) == facts["embedding_rows"] == facts["vocabulary_size"]
    assert facts["new_embedding_rows"] == [13, facts["vocabulary_size"] - 1]
    for row in rows_of(tmp_path / "x.jsonl"):
        assert row["input_ids"][-1] == tokenizer.eos_token_id
        text = "".join(tokenizer.convert_ids_to_tokens(row["input_ids"])).replace("digit", " digit ")
        assert tokenizer(text)["input_ids"] == row["input_ids"]
    assert run("export", *pairs, "--extend-tokenizer", text_tokenizer, "-o", new).exit_code == 1


def test_rows_as_text_are_read_by_the_extended_tokenizer_and_decoded(run, pairs, tmp_path, text_tokenizer):
    transformers = pytest.importorskip("transformers")
    from vqtok.jobs.decode_ids import read_ids

    options = {"tokenizer": str(text_tokenizer), "end_token": "auto", "row": ["{caption} {image}{audio}"]}
    vqtok.export(pairs, tmp_path / "x.jsonl", "jsonl", **options)
    vqtok.export(pairs, tmp_path / "x.txt", "text", **options)
    vqtok.export(pairs, tmp_path / "folder/", "text", split="train=0.5,test=0.5")
    assert files_in(tmp_path / "folder") == [".vqtok.json", "test.txt", "train.txt"]
    lines, rows = (tmp_path / "x.txt").read_text().splitlines(), rows_of(tmp_path / "x.jsonl")
    assert lines[0].startswith("digit 1 <|image|><|image_")
    assert lines[0].endswith("<|/audio|></s>")
    new = tmp_path / "new"
    assert run("export", *pairs, "--extend-tokenizer", text_tokenizer, "-o", new, "--end-token", "auto").exit_code == 0
    tokenizer = transformers.AutoTokenizer.from_pretrained(new)
    assert [tokenizer(line)["input_ids"] for line in lines] == [row["input_ids"] for row in rows]
    # What a tokenizer prints of generated ids is read like these; the text among them is passed over.
    (tmp_path / "g.txt").write_text("\n".join(tokenizer.decode(row["input_ids"]) for row in rows))
    objects = [{"key": row["key"], "text": line} for row, line in zip(rows, lines, strict=True)]
    (tmp_path / "g.jsonl").write_text("\n".join(map(json.dumps, objects)))
    facts = json.loads((tmp_path / ".x.jsonl.json").read_text())
    for path in (tmp_path / "g.txt", tmp_path / "g.jsonl"):
        lists = read_ids(path, facts)
        assert not any(found.error for found in lists)
        for found, row in zip(lists, rows, strict=True):
            picture, spoken = vqtok.tokens_from_ids(
                found.ids, tmp_path / ".x.jsonl.json", sample_rate=16_000, grid=(2, 3)
            )
            assert picture.notes == spoken.notes == []
            expected = pair(int(row["key"]))
            assert np.array_equal(picture.tokens.codes, expected[0].codes)
            assert np.array_equal(spoken.tokens.codes, expected[1].codes)
    (tmp_path / "g.txt").write_text("only words\n")
    (found,) = read_ids(tmp_path / "g.txt", facts)
    assert found.error == "'only' is neither an id nor a token of the export"


def test_lists_are_lists_in_parquet(tmp_path):
    pyarrow = pytest.importorskip("pyarrow.parquet")
    columns = {"tags": ["a", "b"], "box": [[1, 2], [3, 4]], "about": {"x": 1}, "mixed": [1, "a"]}
    (tmp_path / "1.vqt").write_bytes(dump(image(3, 2, metadata=columns)))
    (tmp_path / "2.vqt").write_bytes(dump(image(3, 2, metadata={"tags": []})))
    vqtok.export([tmp_path / "1.vqt", tmp_path / "2.vqt"], tmp_path / "x.parquet", "parquet", special_tokens=["image"])
    first, second = pyarrow.read_table(tmp_path / "x.parquet").to_pylist()
    assert (first["tags"], first["box"], second["tags"], second["box"]) == (["a", "b"], [[1, 2], [3, 4]], [], None)
    assert (first["about"], first["mixed"]) == ('{"x": 1}', '[1, "a"]')
    assert vqtok.read_export(tmp_path / "x.parquet")["1"].metadata["box"] == [[1, 2], [3, 4]]


@pytest.mark.slow
def test_the_trainer_of_transformers_trains_a_small_gpt_on_mixed_rows(pairs, tmp_path, text_tokenizer):
    """An embedding of the old vocabulary grows by the rows that the extended tokenizer asks for."""
    transformers, datasets = pytest.importorskip("transformers"), pytest.importorskip("datasets")
    for name in ("accelerate", "pyarrow"):
        pytest.importorskip(name)
    import torch

    datasets.disable_progress_bars()
    rows = ["{caption}{image}{audio}", "{image}{audio}"]
    options = {"tokenizer": str(text_tokenizer), "end_token": "auto"}
    vqtok.export(pairs, f"{tmp_path}/data/", "parquet", row=rows, pack=24, **options)
    facts = write_extended_tokenizer(
        find_rows(pairs), str(tmp_path / "new"), MixtureOptions("parquet", **options), None
    )
    data = datasets.load_dataset(str(tmp_path / "data"), split="train", cache_dir=str(tmp_path / "cache"))
    data = data.select_columns(["input_ids", "position_ids"]).map(lambda row: {"labels": row["input_ids"]})
    with torch.random.fork_rng():
        torch.manual_seed(0)
        config = transformers.GPT2Config(
            vocab_size=facts["text_size"],
            n_positions=24,
            n_embd=32,
            n_layer=1,
            n_head=2,
            bos_token_id=None,
            eos_token_id=1,
        )
        model = transformers.GPT2LMHeadModel(config)
        model.resize_token_embeddings(facts["embedding_rows"])
        trainer = transformers.Trainer(
            model,
            transformers.TrainingArguments(
                str(tmp_path / "run"),
                max_steps=20,
                per_device_train_batch_size=8,
                learning_rate=1e-2,
                logging_steps=1,
                save_strategy="no",
                report_to=[],
                disable_tqdm=True,
                use_cpu=True,
            ),
            train_dataset=data,
        )
        trainer.train()
    losses = [line["loss"] for line in trainer.state.log_history if "loss" in line]
    assert len(losses) == 20
    assert losses[-1] < 0.8 * losses[0]
    assert model.get_input_embeddings().weight.shape[0] == facts["vocabulary_size"]
